"""A level of a feature pyramid: its whole map, or its map only at points.

The output convolution of an FPN's finest level is most of the pyramid's cost (3 x 3 on 56 x 56 cells at 224 px). If a
level is compared at points, its input is sampled there and then convolved. Convolution and sampling are linear, so
their order does not matter.

BatchNorm in training needs more, because samples are means of cells and vary less than cells. It uses the statistics of
the cells nearest to the points, which are convolved too. Points are uniform, so these estimate those of the whole map.

Shapes: B images, C channels, H x W cells, N points.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from dovetail.heads.masked_mlp import normalised_rows
from dovetail.networks.padding import ReflectingConv2d
from dovetail.networks.undisturbed import undisturbed
from dovetail.views.points import cells_at, left_top

SIDE = 3  # kernel size of the output convolution


class Level:
    """A level's merged map [B, C, H, W], before the output convolution of `SIDE` x `SIDE` and the following layers."""

    def __init__(self, block: nn.Module, merged: Tensor) -> None:
        self.block = block
        self.merged = merged

    def whole(self) -> Tensor:
        """Return the level's map [B, D, H, W]."""
        output: Tensor = self.block(self.merged)
        return output

    def looked_at(self) -> Tensor:
        """Return the map without gradients and without updating BatchNorm statistics."""
        with undisturbed(self.block), torch.no_grad():
            return self.whole()

    def at(self, where: Tensor) -> Tensor:
        """Return the map sampled at positions [B, N, 2] in its [0, 1] frame, [B, D, N, 1]: `sample` of `whole`.

        The result is the same up to rounding, except for BatchNorm statistics in training.
        """
        conv, *norms = self.block.children()
        assert isinstance(conv, nn.Conv2d)  # torchvision's Conv2dNormActivation
        training = any(norm.training for norm in norms)
        first, share = left_top(where, self.merged.shape[2], self.merged.shape[3])
        shares = torch.stack([share, share.round()] if training else [share], dim=2)  # [B, N, S, 2]
        rows = convolved(conv, self.windows(first, shares, reflected=isinstance(conv, ReflectingConv2d)))
        if not training:
            output = rows.permute(0, 3, 1, 2)  # [B, D, N, 1]
            for norm in norms:
                output = norm(output)
            return output
        both = rows.flatten(0, 2)  # [B N S, D], alternating a sample and its nearest cell
        counts = torch.arange(len(both), device=both.device) % 2 == 1
        for norm in norms:
            assert isinstance(norm, _BatchNorm)
            both = normalised_rows(norm, both, counts)
        return both.view(rows.shape)[:, :, :1].permute(0, 3, 1, 2)

    def windows(self, first: Tensor, shares: Tensor, *, reflected: bool) -> Tensor:
        """Return [B, N, S, SIDE * SIDE, C]: the input of the convolution at positions between cells.

        A matrix product computes it from the block of SIDE + 1 cells per side around each position, which is gathered
        once. Cells outside of the map have no weight, as if they were zeros.

        Args:
            first: [B, N, 2] (x, y), the cell before each position.
            shares: [B, N, S, 2] in [0, 1], fraction of the way from it to the next cell, for S positions.
            reflected: Whether to mirror the map at its border instead.
        """
        height, width = self.merged.shape[2:]
        step = torch.arange(SIDE + 1, device=first.device) - SIDE // 2
        columns, rows = (one[..., None] + step for one in first.unbind(2))  # [B, N, SIDE + 1]
        across, down = (between(one) for one in shares.unbind(3))  # [B, N, S, SIDE, SIDE + 1]
        if reflected:
            columns, rows = mirrored(columns, width), mirrored(rows, height)
        else:
            across, down = across * inside(columns, width), down * inside(rows, height)
        cell = rows.clamp(0, height - 1)[..., None] * width + columns.clamp(0, width - 1)[..., None, :]
        block = cells_at(self.merged, cell.flatten(2))  # [B, N, (SIDE + 1)^2, C]
        weight = down[..., :, None, :, None] * across[..., None, :, None, :]  # [B, N, S, SIDE, SIDE, SIDE+1, SIDE+1]
        product = weight.flatten(5).flatten(2, 4).to(block.dtype) @ block
        return product.view(*shares.shape[:3], SIDE * SIDE, -1)


def between(share: Tensor) -> Tensor:
    """Return [..., SIDE, SIDE + 1]: weights of the cells of a line for SIDE cells at shares [...] of the way to the
    next."""
    both = torch.stack([1 - share, share], dim=-1)
    return torch.stack([F.pad(both, (cell, SIDE - 1 - cell)) for cell in range(SIDE)], dim=-2)


def inside(index: Tensor, size: int) -> Tensor:
    """Return [B, N, 1, 1, SIDE + 1] bool: which indices [B, N, SIDE + 1] lie on a line of `size` cells."""
    return ((index >= 0) & (index < size))[:, :, None, None]


def mirrored(index: Tensor, size: int) -> Tensor:
    """Return indices of a line of `size` cells, those beyond its ends mirrored without repeating these."""
    return (size - 1) - ((size - 1) - index.abs()).abs()


def convolved(conv: nn.Conv2d, cells: Tensor) -> Tensor:
    """Return [..., D]: the convolution of neighbourhoods [..., SIDE * SIDE, C], as a product of matrices."""
    return F.linear(cells.flatten(-2), conv.weight.permute(0, 2, 3, 1).flatten(1), conv.bias)


def computable_at_points(block: nn.Module) -> bool:
    """Whether a level's output block is a convolution as `Level.at` has it, with nothing behind it but BatchNorm."""
    conv, *norms = block.children()
    if not isinstance(conv, nn.Conv2d) or not all(isinstance(norm, _BatchNorm) for norm in norms):
        return False
    shape = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups)
    return shape == ((SIDE, SIDE), (1, 1), (1, 1), (1, 1), 1) and conv.padding_mode == "zeros"
