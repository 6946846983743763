"""Adapts tensors to another model of the same architecture: position grids and numbers of input channels.

Shapes: N positions, P of them for class and register tokens, C channels, w the side of a window, h heads.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from timm.layers.patch_embed import PatchEmbed
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table
from torch import Tensor, nn

from dovetail.sizes import Size, sides

POSITIONS = "pos_embed"
WINDOWS = "relative_position_bias_table"
# None; class token; class and distillation tokens; class token and four registers.
TOKENS_BEFORE = (0, 1, 2, 5)
How = Literal["as it is", "resampled", "channels"]


class Fitted(NamedTuple):
    """A tensor with the required shape, and how it was adapted."""

    value: Tensor
    how: How


class Grids(NamedTuple):
    """(rows, columns) of the patches of a file's images and of a model's, if known."""

    found: tuple[int, int] | None = None
    wanted: tuple[int, int] | None = None


SQUARE = Grids()


def grids_of(model: nn.Module, image_size: Size | None) -> Grids:
    """Return the grids of positions of a model with a ViT, and of weights trained with images of `image_size`."""
    stem = next((module for module in model.modules() if isinstance(module, PatchEmbed)), None)
    if stem is None:
        return SQUARE
    found = None
    if image_size is not None:
        rows, columns = (side // patch for side, patch in zip(sides(image_size), stem.patch_size, strict=True))
        found = (rows, columns)
    wanted = None if stem.grid_size is None else (int(stem.grid_size[0]), int(stem.grid_size[1]))
    return Grids(found, wanted)


def fitted(
    name: str, value: Tensor, wanted: tuple[int, ...], *, first_convolution: bool, grids: Grids = SQUARE
) -> Fitted | None:
    """Adapt a tensor to the shape that a model needs. Return None if that is not possible.

    Args:
        name: Name of the tensor, in the common spelling.
        value: Tensor from the file.
        wanted: Shape in the model.
        first_convolution: Whether the tensor is the weight of the first convolution, whose input is the image.
        grids: Grids of patches, without which grids of positions must be square.
    """
    found = tuple(value.shape)
    of_positions = name.endswith(POSITIONS) and len(found) == len(wanted) == 3 and found[2] == wanted[2]
    if found == wanted and not (of_positions and turned(wanted[1], grids)):
        return Fitted(value, "as it is")
    if found != wanted and _squeezed(found) == _squeezed(
        wanted
    ):  # a linear layer and a 1 x 1 convolution are equivalent
        return Fitted(value.reshape(wanted), "as it is")
    if of_positions:
        resampled = resampled_positions(value, wanted[1], grids)
        return None if resampled is None else Fitted(resampled, "resampled")
    if name.endswith(WINDOWS) and len(found) == len(wanted) == 2 and found[1] == wanted[1]:
        resampled = resampled_windows(value, wanted)
        return None if resampled is None else Fitted(resampled, "resampled")
    if first_convolution and len(found) == len(wanted) == 4 and (found[0], *found[2:]) == (wanted[0], *wanted[2:]):
        return Fitted(other_channels(value, wanted[1]), "channels")
    return None


def _squeezed(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side for side in shape if side != 1)


class Layout(NamedTuple):
    """Number of positions before a grid, and (rows, columns) of the grid."""

    before: int
    grid: tuple[int, int]


def layout_of(positions: int, grid: tuple[int, int] | None = None) -> Layout | None:
    """Return the layout of N positions: on `grid` if it fits, otherwise on a square grid. None if neither fits."""
    for before in TOKENS_BEFORE:
        if grid is not None and grid[0] * grid[1] == positions - before:
            return Layout(before, grid)
    for before in TOKENS_BEFORE:
        side = math.isqrt(max(positions - before, 0))
        if side and side * side == positions - before:
            return Layout(before, (side, side))
    return None


def turned(positions: int, grids: Grids) -> bool:
    """Return whether N positions have different grids in file and model, such as 4 x 8 and 8 x 4."""
    layouts = [layout_of(positions, grid) for grid in grids]
    return grids.found is not None and None not in layouts and layouts[0] != layouts[1]


def resampled_positions(value: Tensor, wanted: int, grids: Grids = SQUARE) -> Tensor | None:
    """Resample positions [1, N, C] to another grid, bicubic as in timm. None if a grid is unknown.

    Positions of class tokens that the file lacks are zero, and those that the model lacks are dropped (see
    `moved_class_position`).
    """
    old, new = layout_of(value.shape[1], grids.found), layout_of(wanted, grids.wanted)
    if old is None or new is None:
        return None
    before, room = old.before, new.before
    first, grid = value[:, :before].float(), value[:, before:].float()
    if old.grid != new.grid:
        grid = resample_abs_pos_embed(grid, list(new.grid), old_size=list(old.grid), num_prefix_tokens=0)
    first = torch.cat([first[:, :room], first.new_zeros(1, max(room - before, 0), value.shape[2])], dim=1)
    return torch.cat([first, grid], dim=1)


def moved_class_position(token: Tensor, positions: Tensor, wanted: int, grids: Grids = SQUARE) -> Tensor | None:
    """Add its position to a class token [1, 1, C], for a model whose class token has no position.

    Nothing is lost, as a ViT only uses their sum. Returns None if the model has a position for the class token.
    """
    old, new = layout_of(positions.shape[1], grids.found), layout_of(wanted, grids.wanted)
    if old is None or new is None or old.before != 1 or new.before != 0:
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
