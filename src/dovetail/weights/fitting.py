"""Tensors that fit another model of the same architecture: positions of another grid, pixels of other channels.

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
    """A tensor of the wanted shape, and what was done to it."""

    value: Tensor
    how: How


def fitted(name: str, value: Tensor, wanted: tuple[int, ...], *, first_convolution: bool) -> Fitted | None:
    """Return a tensor in the shape that a model wants; None where it cannot have it.

    Args:
        name: In the common spelling.
        value: From the file.
        wanted: The model's shape.
        first_convolution: Whether it is the one that takes the pixels.
    """
    found = tuple(value.shape)
    if found == wanted:
        return Fitted(value, "as it is")
    if _squeezed(found) == _squeezed(wanted):  # a layer on all channels of each place: linear, or a 1 x 1 convolution
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
    """Return how many of N positions stand before a square grid's: 0, 1, 2 or 5; None where none of them fits."""
    for before in (0, 1, 2, 5):  # none, the class token, distillation's too, four registers too
        side = math.isqrt(max(positions - before, 0))
        if side and side * side == positions - before:
            return before
    return None


def resampled_positions(value: Tensor, wanted: int) -> Tensor | None:
    """Return positions [1, N, C] for another square grid, bicubic as in timm; None where a grid is not square.

    Positions of class tokens that the file has not are zeros, and those that the model has not are left out; see
    `moved_class_position`.
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
    """Return a class token [1, 1, C] with its position added, for a model whose class token has none.

    Their sum is all that a ViT sees of either, so nothing is lost. None where the model has a place for the position.
    """
    before, room = tokens_before(positions.shape[1]), tokens_before(wanted)
    if before != 1 or room != 0:
        return None
    return token + positions[:, :1]


def resampled_windows(value: Tensor, wanted: tuple[int, ...]) -> Tensor | None:
    """Return a table of relative positions [(2w-1)^2, h] for another square window; None where one is not square."""
    sides = [math.isqrt(rows) for rows in (value.shape[0], wanted[0])]
    if any(side * side != rows or side % 2 == 0 for side, rows in zip(sides, (value.shape[0], wanted[0]), strict=True)):
        return None
    window = (sides[1] + 1) // 2
    table: Tensor = resize_rel_pos_bias_table(
        value.float(), new_window_size=(window, window), new_bias_shape=tuple(wanted)
    )
    return table


def other_channels(weight: Tensor, wanted: int) -> Tensor:
    """Return the first convolution [O, I, k, k] for pixels of another number of channels.

    One channel takes the sum over the file's, as timm has it. More take them in turn, scaled by I / wanted, so that the
    answer to channels that are all alike stays what it was.
    """
    weight = weight.float()
    if wanted == 1:
        return weight.sum(dim=1, keepdim=True)
    found = weight.shape[1]
    return weight.repeat(1, -(-wanted // found), 1, 1)[:, :wanted] * (found / wanted)
