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
from dovetail.views.points import cells_at, corners

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
        around = corners(where, self.merged.shape[2], self.merged.shape[3])
        cells = self.neighbourhoods(conv, around.cell)  # [B, N, 4, SIDE, SIDE, C]
        sampled = (cells * around.weight.to(cells.dtype)[..., None, None, None]).sum(dim=2)
        if not any(norm.training for norm in norms):
            output = convolved(conv, sampled)
            for norm in norms:
                output = norm(output)
            return output
        nearest = around.weight.argmax(dim=2, keepdim=True)[..., None, None, None]
        nearest = cells.gather(2, nearest.expand(-1, -1, -1, *cells.shape[3:]))[:, :, 0]
        rows = convolved(conv, torch.cat([sampled, nearest]))[..., 0].transpose(1, 2)  # [2 B, N, D]
        counts = torch.arange(2, device=rows.device).repeat_interleave(where.shape[0] * where.shape[1])
        flat = rows.flatten(0, 1)
        for norm in norms:
            assert isinstance(norm, _BatchNorm)
            flat = normalised_rows(norm, flat, counts)
        return flat.view(rows.shape)[: len(where)].transpose(1, 2)[..., None]

    def neighbourhoods(self, conv: nn.Conv2d, cell: Tensor) -> Tensor:
        """Return [B, ..., SIDE, SIDE, C]: what the convolution sees around cells at flat indices [B, ...]."""
        edge = SIDE // 2
        if isinstance(conv, ReflectingConv2d):
            padded = extended(extended(self.merged, edge, edge, dim=2), edge, edge, dim=3)
        else:
            padded = F.pad(self.merged, (edge,) * 4)
        width = self.merged.shape[3]
        corner = cell // width * (width + 2 * edge) + cell % width  # of its window in the padded map
        step = torch.arange(SIDE, device=cell.device)
        window = step[:, None] * (width + 2 * edge) + step
        return cells_at(padded, corner[..., None, None] + window)


def convolved(conv: nn.Conv2d, cells: Tensor) -> Tensor:
    """Return [B, D, M, 1]: the convolution of neighbourhoods [B, M, SIDE, SIDE, C]."""
    tiles = cells.flatten(1, 2).permute(0, 3, 1, 2)  # [B, C, M SIDE, SIDE], channels last
    return F.conv2d(tiles, conv.weight, conv.bias, stride=SIDE)


def computable_at_points(block: nn.Module) -> bool:
    """Whether a level's output block is a convolution as `Level.at` has it, with nothing behind it but BatchNorm."""
    conv, *norms = block.children()
    if not isinstance(conv, nn.Conv2d) or not all(isinstance(norm, _BatchNorm) for norm in norms):
        return False
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    return shape == ((SIDE, SIDE), (1, 1), (1, 1), (1, 1), 1) and conv.padding_mode == "zeros"
