"""Selection of the cells of a map that a term compares, and of the views that belong to them.

Shapes: B images, C channels, H x W cells, N points or segments.
"""

from __future__ import annotations

from dataclasses import replace

import torch.nn.functional as F
from torch import Tensor

from dovetail.errors import ModelError, RecipeError
from dovetail.heads.base import at_least_float32, full_precision
from dovetail.recipe import Cells, Tap
from dovetail.views.points import inner, places, sample
from dovetail.views.segments import Segmented, averaged, cells_of, sampled_ids
from dovetail.views.view import View


def chosen_cells(cells: Cells, value: Tensor, view: View, tap: Tap | None = None) -> Tensor:
    """Return the input of a term's head: the chosen cells of a map [B, C, H, W] of `tap`, or any other tap unchanged.

    Sampled cells are [B, C, N, 1], with row i at point i of the view, or the mean over its sampled segment i.
    """
    if value.dim() != 4:
        return value
    if cells.points is not None:
        if view.points is None:
            raise RecipeError("A term samples its maps at points, but the view has none; add points to the view plan.")
        return sample(value, places(view))
    if cells.segments is not None:
        if tap is not None and tuple(value.shape[2:]) != size_of(view, tap):
            raise ModelError(
                f"A map of stride {tap.stride} has {value.shape[2]} x {value.shape[3]} cells, expected "
                f"{' x '.join(map(str, size_of(view, tap)))}; use another image size, such as a multiple of the stride."
            )
        value = at_least_float32(value)
        with full_precision(value):
            return averaged(without_border(value, cells.border), segments_of(cells, view, *value.shape[2:]))
    return pool_to_grid(without_border(value, cells.border), cells.grid)


def view_of_cells(cells: Cells, view: View, tap: Tap) -> View:
    """Return the view for the objective of a term on `tap`, with the box of its cells and its sampled points."""
    height, width = size_of(view, tap)
    if cells.points is not None:
        return replace(view, map_size=(height, width))
    if cells.segments is not None and tap.kind == "map":
        view = replace(view, ids=segments_of(cells, view, height, width).ids)
    if view.points is not None:
        view = replace(view, points=None)
    if tap.kind != "map" or not cells.border:
        return view
    return inner(view, (left_out(cells.border, height) / height, left_out(cells.border, width) / width))


def size_of(view: View, tap: Tap) -> tuple[int, int]:
    """Return the number of cells (height, width) of a tap's map."""
    height, width = (-(-side // tap.stride) for side in view.pixels.shape[2:])
    return height, width


def segments_of(cells: Cells, view: View, height: int, width: int) -> Segmented:
    """Return the segments of a view's map of height x width cells, without its border."""
    if view.segments is None or view.picks is None:
        raise RecipeError(
            "A term averages its maps over segments, but the view has none; add segments to the view plan."
        )
    labels = without_border(cells_of(view.segments, height, width)[:, None], cells.border)[:, 0]
    return Segmented(labels, sampled_ids(labels, view.picks))


def without_border(value: Tensor, border: int) -> Tensor:
    """Return a map [B, C, H, W] without `border` cells at each edge."""
    down, across = (left_out(border, side) for side in value.shape[2:])
    return value[:, :, down : value.shape[2] - down, across : value.shape[3] - across]


def left_out(border: int, side: int) -> int:
    """Return how many cells to remove at each end of a `side`; at least one or two cells remain."""
    return min(border, (side - 1) // 2)


def pool_to_grid(value: Tensor, grid: int | None) -> Tensor:
    """Average-pool maps [B, C, H, W] to at most `grid` cells per side; smaller maps are unchanged."""
    if grid is None or value.dim() != 4 or max(value.shape[2:]) <= grid:
        return value
    height, width = (min(side, grid) for side in value.shape[2:])
    return F.adaptive_avg_pool2d(value, (height, width))
