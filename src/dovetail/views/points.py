"""Points of the source image at which maps of several views are compared: their positions, and sampling of maps.

A map has one cell per `stride` pixels of its view. Bilinear sampling uses the four cells around a point. Between the
centres of the outermost cells and the edge of the view, it uses only the outermost cells.

Shapes: B images, G global views, N points, C channels, H x W cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from dovetail.views.plan import PointSpec
from dovetail.views.view import View


class Corners(NamedTuple):
    """The four cells around each point: flat indices `cell` [B, N, 4], and bilinear weights [B, N, 4] that sum to 1."""

    cell: Tensor
    weight: Tensor


def place_points(unit: np.ndarray, boxes: Tensor, spec: PointSpec) -> Tensor:
    """Return the points of one image's global views, [G, N, 2] (x, y) in [0, 1] of the image.

    Args:
        unit: [1 or G, N, 2] in [0, 1), uniform positions within the region; one set may serve all views.
        boxes: [G, 4] crops (x1, y1, x2, y2) in [0, 1] of the image.
        spec: Specification of the points.
    """
    margin = spec.margin * (boxes[:, 2:] - boxes[:, :2])
    low, high = boxes[:, :2] + margin, boxes[:, 2:] - margin  # [G, 2]
    if spec.region == "overlap":
        common_low, common_high = low.amax(dim=0, keepdim=True), high.amin(dim=0, keepdim=True)
        if bool((common_low < common_high).all()):
            low, high = common_low.expand_as(low), common_high.expand_as(high)
    share = torch.from_numpy(unit).to(boxes.dtype)
    return low[:, None] + share * (high - low)[:, None]


def with_points(views: Sequence[View], spec: PointSpec | None, rng: np.random.Generator) -> list[View]:
    """Add points drawn from `rng` to views that do not come from a loader; unchanged if `spec` is None."""
    if spec is None:
        return list(views)
    seen = [number for number, view in enumerate(views) if view.role == "global"]
    boxes = torch.stack([views[number].box for number in seen], dim=1)  # [B, G, 4]
    sets = 1 if spec.region == "overlap" else len(seen)
    points = torch.stack([place_points(rng.random((sets, spec.count, 2)), one.cpu(), spec) for one in boxes])
    placed = dict(zip(seen, points.to(boxes.device).unbind(1), strict=True))
    return [replace(view, points=placed.get(number)) for number, view in enumerate(views)]


def shared(a: View, b: View) -> Tensor:
    """Return [B] bool: whether both views of an image have the same points, so that row i is the same place."""
    assert a.points is not None  # the views of a sampled term
    assert b.points is not None
    return (a.points == b.points).all(dim=2).all(dim=1)


def places(view: View) -> Tensor:
    """Return [B, N, 2]: positions of a view's points in the [0, 1] frame of its pixels, x mirrored if it is flipped."""
    assert view.points is not None  # the views of a sampled term
    low, high = view.box[:, None, :2], view.box[:, None, 2:]
    x, y = ((view.points - low) / (high - low)).unbind(2)
    return torch.stack([torch.where(view.flipped[:, None], 1 - x, x), y], dim=2)


def centres_of_cells(view: View, height: int, width: int) -> Tensor:
    """Return [B, height * width, 2]: the centres (x, y) of a view's cells in the image's [0, 1] frame, row by row.

    The cells belong to a map of the view as the network sees it. If the view is flipped, the first cell is at the right
    edge of the crop.
    """
    across, down = (
        (torch.arange(side, device=view.box.device, dtype=view.box.dtype) + 0.5) / side for side in (width, height)
    )
    x = torch.where(view.flipped[:, None], 1 - across, across)  # [B, width]
    share = torch.stack([x[:, None, :].expand(-1, height, -1), down[:, None].expand(len(x), -1, width)], dim=3)
    low, high = view.box[:, None, :2], view.box[:, None, 2:]
    return low + share.flatten(1, 2) * (high - low)


def left_top(where: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Return the cells of a map before positions [B, N, 2] in its [0, 1] frame, and the fraction to the next cell.

    Returns:
        [B, N, 2] integers (x, y), at most the second last cell; and [B, N, 2] in [0, 1].
    """
    sides = where.new_tensor([width, height])
    at = torch.minimum((where * sides - 0.5).clamp(min=0), sides - 1)
    first = torch.minimum(at.floor(), (sides - 2).clamp(min=0))
    return first.long(), at - first


def corners(where: Tensor, height: int, width: int) -> Corners:
    """Return the cells of a map of height x width around positions [B, N, 2] in its [0, 1] frame."""
    (left, top), (to_right, to_bottom) = (one.unbind(2) for one in left_top(where, height, width))
    right, bottom = (left + 1).clamp(max=width - 1), (top + 1).clamp(max=height - 1)
    cell = torch.stack([top * width + left, top * width + right, bottom * width + left, bottom * width + right], dim=2)
    across, down = torch.stack([1 - to_right, to_right], dim=2), torch.stack([1 - to_bottom, to_bottom], dim=2)
    return Corners(cell, (down[..., :, None] * across[..., None, :]).flatten(2))


def sample(maps: Tensor, where: Tensor) -> Tensor:
    """Sample maps [B, C, H, W] at positions [B, N, 2] in their [0, 1] frame: [B, C, N, 1], in the same dtype."""
    around = corners(where, maps.shape[2], maps.shape[3])
    return weighted(cells_at(maps, around.cell), around.weight)


def cells_at(maps: Tensor, index: Tensor) -> Tensor:
    """Return [B, ..., C]: the cells of maps [B, C, H, W] at flat indices [B, ...]."""
    batch, channels, height, width = maps.shape
    rows = maps.permute(0, 2, 3, 1).reshape(batch * height * width, channels)  # a view if channels are last
    first = torch.arange(batch, device=index.device) * (height * width)
    flat = index + first.view(-1, *[1] * (index.dim() - 1))
    return rows.index_select(0, flat.flatten()).view(*index.shape, channels)


def weighted(cells: Tensor, weight: Tensor) -> Tensor:
    """Return [B, C, N, 1]: the sums of cells [B, N, 4, C] by weights [B, N, 4]."""
    rows = (cells * weight[..., None]).sum(dim=2).to(cells.dtype)  # [B, N, C]
    return rows.transpose(1, 2)[..., None]


def inner(view: View, share: tuple[float, float]) -> View:
    """Return a view whose box is smaller by a `share` of its height and width on each side, like a cropped map."""
    down, across = share
    size = view.box[:, 2:] - view.box[:, :2]
    cut = size * size.new_tensor([across, down])
    return replace(view, box=torch.cat([view.box[:, :2] + cut, view.box[:, 2:] - cut], dim=1))
