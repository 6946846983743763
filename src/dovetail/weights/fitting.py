"""Adapts tensors to another model of the same architecture: position grids and numbers of input channels.

Shapes: N positions, P of them for class and register tokens, C channels, w the side of a window, h heads.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table
from torch import Tensor

POSITIONS = "pos_embed"
WINDOWS = "relative_position_bias_table"
How = Literal["as it is", "resampled", "channels"]


class Fitted(NamedTuple):
    """A tensor with the required shape, and how it was adapted."""

    value: Tensor
    how: How


def fitted(name: str, value: Tensor, wanted: tuple[int, ...], *, first_convolution: bool) -> Fitted | None:
    """Adapt a tensor to the shape that a model needs. Return None if that is not possible.

    Args:
        name: Name of the tensor, in the common spelling.
        value: Tensor from the file.
        wanted: Shape in the model.
        first_convolution: Whether the tensor is the weight of the first convolution, whose input is the image.
    """
    found = tuple(value.shape)
    if found == wanted:
        return Fitted(value, "as it is")
    if _squeezed(found) == _squeezed(wanted):  # a linear layer and a 1 x 1 convolution are equivalent
        return Fitted(value.reshape(wanted), "as it is")
    if name.endswith(POSITIONS) and len(found) == len(wanted) == 3 and found[2] == wanted[2]:
        resampled = resampled_positions(value, wanted[1])
        return None if resampled is None else Fitted(resampled, "resampled")
    if name.endswith(WINDOWS) and len(found) == len(wanted) == 2 and found[1] == wanted[1]:
        resampled = resampled_windows(value, wanted)
        return None if resampled is None else Fitted(resampled, "resampled")
    if first_convolution and len(found) == len(wanted) == 4 and (found[0], *found[2:]) == (wanted[0], *wanted[2:]):
        return Fitted(other_channels(value, wanted[1]), "channels")
    return None


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side for side in shape if side != 1)


def tokens_before(positions: int) -> int | None:
    """Return how many of N positions precede a square grid: 0, 1, 2 or 5. None if no number fits."""
    for before in (0, 1, 2, 5):  # none; class token; class and distillation tokens; class token and four registers
        side = math.isqrt(max(positions - before, 0))
        if side and side * side == positions - before:
            return before
    return None


def resampled_positions(value: Tensor, wanted: int) -> Tensor | None:
    """Resample positions [1, N, C] to another square grid, bicubic as in timm. None if a grid is not square.

    Positions of class tokens that the file lacks are zero, and those that the model lacks are dropped (see
    `moved_class_position`).
    """
    before, room = tokens_before(value.shape[1]), tokens_before(wanted)
    if before is None or room is None:
        return None
    first, grid = value[:, :before].float(), value[:, before:].float()
    if grid.shape[1] != wanted - room:
        grid = resample_abs_pos_embed(grid, [math.isqrt(wanted - room)] * 2, num_prefix_tokens=0)
    first = torch.cat([first[:, :room], first.new_zeros(1, max(room - before, 0), value.shape[2])], dim=1)
    return torch.cat([first, grid], dim=1)


def moved_class_position(token: Tensor, positions: Tensor, wanted: int) -> Tensor | None:
    """Add its position to a class token [1, 1, C], for a model whose class token has no position.

    Nothing is lost, as a ViT only uses their sum. Returns None if the model has a position for the class token.
    """
    before, room = tokens_before(positions.shape[1]), tokens_before(wanted)
    if before != 1 or room != 0:
        return None
    return token + positions[:, :1]


def resampled_windows(value: Tensor, wanted: tuple[int, ...]) -> Tensor | None:
    """Resample relative positions [(2w-1)^2, h] to another square window. None if a window is not square."""
    sides = [math.isqrt(rows) for rows in (value.shape[0], wanted[0])]
    if any(side * side != rows or side % 2 == 0 for side, rows in zip(sides, (value.shape[0], wanted[0]), strict=True)):
        return None
    window = (sides[1] + 1) // 2
    table: Tensor = resize_rel_pos_bias_table(
        value.float(), new_window_size=(window, window), new_bias_shape=tuple(wanted)
    )
    return table


def other_channels(weight: Tensor, wanted: int) -> Tensor:
    """Adapt the weight of the first convolution [O, I, k, k] to another number of input channels.

    For one channel, the weights are summed over the input channels, as in timm. For more channels, they are repeated
    and scaled by I / wanted, so the output for equal channels stays the same.
    """
    weight = weight.float()
    if wanted == 1:
        return weight.sum(dim=1, keepdim=True)
    found = weight.shape[1]
    return weight.repeat(1, -(-wanted // found), 1, 1)[:, :wanted] * (found / wanted)
