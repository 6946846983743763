"""Between a tap and a term's head: which cells of the map the term looks at, and the views that go with them.

Shapes: B images, C channels, H x W cells, N points.
"""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from dovetail.errors import RecipeError
from dovetail.recipe import Cells, Tap
from dovetail.views.points import inner, places, sample
from dovetail.views.view import View


def chosen_cells(cells: Cells, value: Tensor, view: View) -> Tensor:
    """Return what a term's head gets of a tap: of a map [B, C, H, W] the cells chosen, other taps as they are.

    Sampled cells are rows [B, C, N, 1], row i at the view's point i.
    """
    if value.dim() != 4:
        return value
    if cells.points is not None:
        if view.points is None:
            raise RecipeError("A term samples points of its maps, and the view has none; draw them with the views.")
        return sample(value, places(view))
    return pool_to_grid(without_border(value, cells.border), cells.grid)


def view_of_cells(cells: Cells, view: View, tap: Tap) -> View:
    """Return the view as the objective of a term on `tap` gets it: its box that of the cells, points where sampled."""
    height, width = (-(-side // tap.stride) for side in view.pixels.shape[2:])
    if cells.points is not None:
        return replace(view, map_size=(height, width))
    if view.points is not None:
        view = replace(view, points=None)
    if tap.kind != "map" or not cells.border:
        return view
    return inner(view, (left_out(cells.border, height) / height, left_out(cells.border, width) / width))


def without_border(value: Tensor, border: int) -> Tensor:
    """Return a map [B, C, H, W] without `border` cells at each edge."""
    down, across = (left_out(border, side) for side in value.shape[2:])
    return value[:, :, down : value.shape[2] - down, across : value.shape[3] - across]


def left_out(border: int, side: int) -> int:
    """Return how many cells are left out at each end of a `side` of cells, of which one or two stay at least."""
    return min(border, (side - 1) // 2)


def pool_to_grid(value: Tensor, grid: int | None) -> Tensor:
    """Average-pool maps [B, C, H, W] larger than `grid` cells on a side to it; others pass."""
    if grid is None or value.dim() != 4 or max(value.shape[2:]) <= grid:
        return value
    height, width = (min(side, grid) for side in value.shape[2:])
    return F.adaptive_avg_pool2d(value, (height, width))
