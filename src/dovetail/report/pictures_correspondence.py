"""Matching cells of two images: mutual nearest neighbours among the cells of a feature map, by cosine similarity.

Shapes: C channels, h x w cells of a map, M = h w. Positions are (x, y) in [0, 1] of an image, in the
order of cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.patches import ConnectionPatch
from matplotlib.patheffects import withStroke
from torch import Tensor

from dovetail.data.loader import ViewDataset
from dovetail.data.sources import ImageSource
from dovetail.errors import DataError, OptionsError
from dovetail.networks.network import Network
from dovetail.report.features import maps_of, shown_taps
from dovetail.report.pixels import Rgb, as_view, shown, spread_over, unnormalised
from dovetail.report.sheets import MAP, Sheet, short
from dovetail.run.restored import Restored
from dovetail.views.batch import collate, to_views
from dovetail.views.view import View

# Lines have dark edges for bright images, and the dark end of the colour map is not used, for dark images.
COLOURS = ListedColormap(mpl.colormaps[MAP](np.linspace(0.35, 1, 256)))


class Matches(NamedTuple):
    """Pairs of cells: their indices `first` and `second` [L] and cosine similarities `cosine` [L], best first.

    `nearest` [M] is the nearest second cell of each first cell, mutual or not.
    """

    first: Tensor
    second: Tensor
    cosine: Tensor
    nearest: Tensor


def match(first: Tensor, second: Tensor) -> Matches:
    """Return the mutual nearest neighbours between the cells of two maps [C, h, w]."""
    a, b = (torch.nn.functional.normalize(value.flatten(1), dim=0) for value in (first, second))
    cosine = a.T @ b  # [M, M]
    there, back = cosine.argmax(dim=1), cosine.argmax(dim=0)
    cells = torch.arange(len(there))
    mutual = cells[back[there] == cells]
    values = cosine[mutual, there[mutual]]
    order = values.argsort(descending=True, stable=True)
    return Matches(mutual[order], there[mutual[order]], values[order], there)


def spread_out(matches: Matches, width: int, lines: int) -> Matches:
    """Return up to `lines` matches, best first, with at most one in each coarse cell of the first map.

    The best matches are often close together; lines from all parts of the image are more informative.
    """
    step = max(1, round(width / (2 * lines**0.5)))
    kept: list[int] = []
    taken: set[tuple[int, int]] = set()
    for place, cell in enumerate(matches.first.tolist()):
        coarse = (cell // width // step, cell % width // step)
        if coarse not in taken:
            taken.add(coarse)
            kept.append(place)
        if len(kept) == lines:
            break
    chosen = torch.tensor(kept, dtype=torch.long)
    return Matches(matches.first[chosen], matches.second[chosen], matches.cosine[chosen], matches.nearest)


def cell_places(height: int, width: int) -> Tensor:
    """Return the centres (x, y) of the cells of a map, [M, 2]."""
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()], dim=1)


def in_image(places: Tensor, view: View) -> Tensor:
    """Convert positions [M, 2] in a view to (x, y) in pixels of its image."""
    x = 1 - places[:, 0] if bool(view.flipped[0]) else places[:, 0]
    corner, size = view.box[0, :2], view.box[0, 2:] - view.box[0, :2]
    return (corner + torch.stack([x, places[:, 1]], dim=1) * size) * view.source_px[0]


def median_error(first: Tensor, second: Tensor, views: tuple[View, View]) -> float | None:
    """Return the median distance between the true and the matched position of a cell, in pixels of the image.

    Only cells of the first view that are inside the second view are used. None if there are no such cells.
    """
    places = cell_places(first.shape[1], first.shape[2])
    true = in_image(places, views[0])
    low, high = (views[1].box[0].view(2, 2) * views[1].source_px[0]).unbind(0)
    inside = ((true >= low) & (true <= high)).all(dim=1)
    if not bool(inside.any()):
        return None
    found = in_image(cell_places(second.shape[1], second.shape[2]), views[1])[match(first, second).nearest]
    return float((found - true).norm(dim=1)[inside].median())


def view_pair(run: Restored, source: ImageSource, *, most: int, lines: int) -> list[Sheet]:
    """Return a sheet per image: matches between its first two views before and after pre-training, with the error.

    Raises:
        DovetailError: The recipe has a single global view, or no image is readable.
    """
    if len(run.recipe.views.views) < 2 or run.recipe.views.views[1].role != "global":
        raise OptionsError(f"The method {run.options.method} has only one global view; use --between images.")
    dataset = ViewDataset(
        source, run.recipe.views.without_side(), seed=int(run.options.seed), in_channels=run.in_channels
    )
    sheets: list[Sheet] = []
    for stretch in spread_over(source, most):
        for index in stretch:
            sample = dataset[(0, index)]
            if sample.used == index:  # otherwise it is unreadable, and was replaced by another image
                first, second = to_views(collate([sample]), run.recipe.views)[:2]
                sheets.append(_views_sheet(run, source.name(index), (first, second), lines))
                break
    if not sheets:
        raise DataError("None of the images can be read; specify other images with --images.")
    return sheets


def _views_sheet(run: Restored, name: str, views: tuple[View, View], lines: int) -> Sheet:
    """Return the matches between two views of an image, before and after pre-training."""
    tap = shown_taps(run.after.taps, run.recipe)[-1]
    rows = []
    for when, network in (("before", run.before), (f"after {run.steps}", run.after)):
        maps = [_map(network, view, tap) for view in views]
        error = median_error(maps[0], maps[1], views)
        known = "views do not overlap" if error is None else f"median error {error:.0f} px in the image"
        rows.append((f"{when}: {known}", maps))
    pictures = tuple(shown(unnormalised(view.pixels[0], run.recipe.views)) for view in views)
    return _sheet(f"Two views of {short(name)}, tap {tap}", pictures, rows, lines)


def image_pair(run: Restored, names: Sequence[str], crops: Sequence[Tensor], *, lines: int) -> list[Sheet]:
    """Return a sheet per pair of images: their matches before and after pre-training."""
    tap = shown_taps(run.after.taps, run.recipe)[-1]
    sheets = []
    for start in range(0, len(names) - 1, 2):
        pair = crops[start : start + 2]
        rows = []
        for when, network in (("before", run.before), (f"after {run.steps}", run.after)):
            maps = maps_of(network, as_view(pair, run.recipe.views, network), [tap])[tap]
            rows.append((when, [maps[0], maps[1]]))
        title = f"{short(names[start])} and {short(names[start + 1])}, tap {tap}"
        sheets.append(_sheet(title, (shown(pair[0]), shown(pair[1])), rows, lines))
    return sheets


def _map(network: Network, view: View, tap: str) -> Tensor:
    """Return the map [C, h, w] of a view of one image, without its mask."""
    plain = View(view.pixels, view.box, view.flipped, view.source_px)
    like = next(network.parameters())
    return maps_of(network, plain.to(like.device), [tap])[tap][0]


def _sheet(title: str, pictures: tuple[Rgb, ...], rows: Sequence[tuple[str, list[Tensor]]], lines: int) -> Sheet:
    """Return a sheet with rows of two images and lines between their best matches."""
    sheet = Sheet(len(rows), 2, title=title, cell=(3.4, 2.95))
    drawn = [spread_out(match(maps[0], maps[1]), maps[0].shape[2], lines) for _, maps in rows]
    low = lowest([matches.cosine for matches in drawn])
    for row, ((words, maps), matches) in enumerate(zip(rows, drawn, strict=True)):
        left = sheet.show(row, 0, pictures[0], title=words, smooth=True, left=True)
        right = sheet.show(row, 1, pictures[1], smooth=True)
        starts = cell_places(maps[0].shape[1], maps[0].shape[2])[matches.first]
        ends = cell_places(maps[1].shape[1], maps[1].shape[2])[matches.second]
        colours = COLOURS(((matches.cosine - low) / (1 - low)).clamp(0, 1).numpy())
        for start, end, colour in zip(starts.tolist(), ends.tolist(), colours, strict=True):
            height, width = pictures[0].shape[:2]
            a, b = (start[0] * width, start[1] * height), (end[0] * pictures[1].shape[1], end[1] * pictures[1].shape[0])
            line = ConnectionPatch(a, b, "data", "data", axesA=left, axesB=right, color=colour, linewidth=1.6)
            line.set_path_effects([withStroke(linewidth=3, foreground="black", alpha=0.6)])
            line.set_in_layout(False)
            sheet.figure.add_artist(line)
            for axes, (x, y) in ((left, a), (right, b)):
                axes.plot(x, y, marker="o", markersize=4, color=colour, markeredgecolor="black", markeredgewidth=0.5)
    sheet.scale(low, 1, "cosine similarity (no unit)", colours=COLOURS)
    return sheet


def lowest(cosines: Sequence[Tensor]) -> float:
    """Return the lower end of the colour scale: just below the smallest cosine similarity, for good contrast."""
    least = float(torch.cat(list(cosines)).min())
    step = next((step for step in (0.5, 0.2, 0.1, 0.05, 0.02) if 1 - least > step), 0.01)
    return min(max(math.floor(least / step) * step, 0.0), 0.99)
