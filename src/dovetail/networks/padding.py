"""Padding of a decoder's convolutions during pre-training.

Zero padding lowers the values at the border of a map, which reveals the distance of a cell to the border (Islam et al.,
"How Much Position Information Do Convolutional Neural Networks Encode?", arXiv 2001.08248). Reflection padding does
not. The convolutions are restored afterwards: fine-tuning and export use the original model.

Shapes: B images, C channels, H x W cells.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    pass


def pads_zeros(convolution: nn.Conv2d) -> bool:
    """Whether a convolution adds zeros to its map."""
    return convolution.padding_mode == "zeros" and any(map(any, sides_of(convolution)))


class ReflectingConv2d(nn.Conv2d):
    """A convolution with reflection padding instead of zero padding."""

    def forward(self, maps: Tensor) -> Tensor:
        """Return the convolution of maps [B, C, H, W]."""
        (top, bottom), (left, right) = sides_of(self)
        maps = extended(extended(maps, top, bottom, dim=2), left, right, dim=3)
        return F.conv2d(maps, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def sides_of(convolution: nn.Conv2d) -> list[tuple[int, int]]:
    """Return how many cells a convolution adds before and after its map, vertically and horizontally."""
    if convolution.padding == "valid":
        return [(0, 0), (0, 0)]
    if convolution.padding == "same":  # an odd cell is added at the end, as in PyTorch
        reach = [d * (k - 1) for d, k in zip(convolution.dilation, convolution.kernel_size, strict=True)]
        return [(total // 2, total - total // 2) for total in reach]
    return [(int(side), int(side)) for side in convolution.padding]


def extended(maps: Tensor, before: int, after: int, *, dim: int) -> Tensor:
    """Pad maps by reflection with `before` and `after` cells along `dim`, without repeating the border.

    A map that is too small repeats its border instead. The implementation uses slices, whose gradient is deterministic
    on GPUs, unlike that of PyTorch's reflection padding.

    Args:
        maps: [B, C, H, W].
        before: Number of cells before the first.
        after: Number of cells after the last.
        dim: 2 or 3.
    """
    size = maps.shape[dim]
    if max(before, after) < size:
        first = maps.narrow(dim, 1, before).flip(dim)
        last = maps.narrow(dim, size - 1 - after, after).flip(dim)
    else:
        first = maps.narrow(dim, 0, 1).repeat_interleave(before, dim=dim)
        last = maps.narrow(dim, size - 1, 1).repeat_interleave(after, dim=dim)
    return torch.cat([first, maps, last], dim=dim)
