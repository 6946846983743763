"""A level of a feature pyramid: its map, or its map at points alone.

The output convolution of an FPN's finest level is most of the pyramid's cost (3 x 3 on 56 x 56 cells at 224 px). Where
a level is compared at points, what the convolution sees is sampled there and convolved: convolution and sampling are
linear, so that their order changes nothing.

BatchNorm in training needs more: samples are means of cells and vary less than the cells do. It has the statistics of
the cells nearest to the points, which are convolved besides. Points are uniform, so these estimate those of the map.

Shapes: B images, C channels, H x W cells, N points.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from dovetail.heads.rows import normalised_rows
from dovetail.networks.padding import ReflectingConv2d, extended
from dovetail.networks.undisturbed import undisturbed
from dovetail.views.points import cells_at, left_top

SIDE = 3  # of the output convolution's kernel


class Level:
    """A level's merged map [B, C, H, W] before its output convolution of `SIDE` x `SIDE` and what follows it."""

    def __init__(self, block: nn.Module, merged: Tensor) -> None:
        self.block = block
        self.merged = merged

    def whole(self) -> Tensor:
        """Return the level's map [B, D, H, W]."""
        output: Tensor = self.block(self.merged)
        return output

    def looked_at(self) -> Tensor:
        """Return the map, without a gradient and without moving BatchNorm's statistics."""
        with undisturbed(self.block), torch.no_grad():
            return self.whole()

    def at(self, where: Tensor) -> Tensor:
        """Return the map sampled at places [B, N, 2] in its [0, 1] frame, [B, D, N, 1]: `sample` of `whole`.

        The same numbers, up to rounding, but for BatchNorm's statistics in training.
        """
        conv, *norms = self.block.children()
        assert isinstance(conv, nn.Conv2d)  # torchvision's Conv2dNormActivation
        first, share = left_top(where, self.merged.shape[2], self.merged.shape[3])
        block = self.blocks(conv, first)  # [B, N, SIDE + 1, SIDE + 1, C]
        rows = convolved(conv, windows(block, share))  # [B, N, D]
        if not any(norm.training for norm in norms):
            output = rows.transpose(1, 2)[..., None]
            for norm in norms:
                output = norm(output)
            return output
        both = torch.stack([rows, convolved(conv, windows(block, share.round()))]).flatten(0, 2)  # [2 B N, D]
        counts = torch.arange(2, device=rows.device).repeat_interleave(len(both) // 2)
        for norm in norms:
            assert isinstance(norm, _BatchNorm)
            both = normalised_rows(norm, both, counts)
        return both[: len(both) // 2].view(rows.shape).transpose(1, 2)[..., None]

    def blocks(self, conv: nn.Conv2d, first: Tensor) -> Tensor:
        """Return [B, N, SIDE + 1, SIDE + 1, C]: what the convolution sees of four cells, the first at [B, N, 2] (x, y).

        Cells of a map of a single row or column are followed by zeros, which have no weight.
        """
        edge = SIDE // 2
        if isinstance(conv, ReflectingConv2d):
            padded = extended(extended(self.merged, edge, edge, dim=2), edge, edge, dim=3)
            padded = F.pad(padded, (0, 1, 0, 1))
        else:
            padded = F.pad(self.merged, (edge, edge + 1, edge, edge + 1))
        step, width = torch.arange(SIDE + 1, device=first.device), padded.shape[3]
        corner = first[..., 1] * width + first[..., 0]
        return cells_at(padded, corner[..., None, None] + step[:, None] * width + step)


def windows(block: Tensor, share: Tensor) -> Tensor:
    """Return [B, N, SIDE, SIDE, C]: the cells around places between the first and the second cell of a block.

    Args:
        block: [B, N, SIDE + 1, SIDE + 1, C].
        share: [B, N, 2] in [0, 1], how far each place is from the first to the second cell, (x, y).
    """
    across, down = share.to(block.dtype)[..., None, None, None].unbind(2)
    rows = torch.lerp(block[:, :, :, :-1], block[:, :, :, 1:], across)
    return torch.lerp(rows[:, :, :-1], rows[:, :, 1:], down)


def convolved(conv: nn.Conv2d, cells: Tensor) -> Tensor:
    """Return [B, N, D]: the convolution of neighbourhoods [B, N, SIDE, SIDE, C], as a product of matrices."""
    return F.linear(cells.flatten(2), conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)


def computable_at_points(block: nn.Module) -> bool:
    """Whether a level's output block is a convolution as `Level.at` has it, with nothing behind it but BatchNorm."""
    conv, *norms = block.children()
    if not isinstance(conv, nn.Conv2d) or not all(isinstance(norm, _BatchNorm) for norm in norms):
        return False
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    return shape == ((SIDE, SIDE), (1, 1), (1, 1), (1, 1), 1) and conv.padding_mode == "zeros"
