"""Segments of an image: their crops, the segment of each cell of a map, and maps averaged over segments.

A segment is the set of pixels with the same integer in a label map of the image. Segments do not overlap.

Shapes: B images, C channels, S sampled segments, H x W cells or pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dovetail.sizes import Size, sides


class Segmented(NamedTuple):
    """The sampled segments of one view on a map.

    Attributes:
        cells: [B, H, W] int, the segment of each cell.
        ids: [B, S] int, the sampled segments. Each has at least one cell.
    """

    cells: Tensor
    ids: Tensor


def cropped(labels: np.ndarray, box: np.ndarray, *, size_px: Size, flipped: bool) -> Tensor:
    """Return the crop of a label map [h, w] as int32 [H, W], by the nearest pixel, then mirrored if `flipped`.

    Args:
        labels: Segment of each pixel. The map may be smaller or larger than its image.
        box: [4] (x1, y1, x2, y2) in [0, 1] of the image.
        size_px: Size of the crop: the side of a square, or (H, W).
        flipped: Mirror left to right.
    """
    down, across = ((np.arange(side) + 0.5) / side for side in sides(size_px))
    x1, y1, x2, y2 = (float(edge) for edge in box)
    across, down = x1 + across * (x2 - x1), y1 + down * (y2 - y1)
    columns = np.clip((across * labels.shape[1]).astype(np.int64), 0, labels.shape[1] - 1)
    rows = np.clip((down * labels.shape[0]).astype(np.int64), 0, labels.shape[0] - 1)
    crop = labels[rows[:, None], columns[::-1] if flipped else columns]
    return torch.from_numpy(np.ascontiguousarray(crop, dtype=np.int32))


def most_frequent(values: Tensor) -> Tensor:
    """Return the most frequent value along the last dimension of [..., N] integers; of several, the smallest."""
    ordered = values.sort(dim=-1).values
    place = torch.arange(ordered.shape[-1], device=ordered.device).expand_as(ordered)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[..., 1:] = ordered[..., 1:] != ordered[..., :-1]
    run = place - torch.where(first, place, 0).cummax(dim=-1).values  # of equal values, counted from 0
    return ordered.gather(-1, run.argmax(dim=-1, keepdim=True)).squeeze(-1)


def cells_of(segments: Tensor, height: int, width: int) -> Tensor:
    """Return [B, height, width]: the most frequent segment in each cell of a map, from pixels [B, H, W].

    If the number of pixels is not a multiple of the number of cells, pixels are repeated first.
    """
    down, across = (-(-pixels // cells) for pixels, cells in zip(segments.shape[1:], (height, width), strict=True))
    size = (down * height, across * width)
    if tuple(segments.shape[1:]) != size:
        pairs = zip(size, segments.shape[1:], strict=True)
        rows, columns = (torch.arange(new, device=segments.device) * old // new for new, old in pairs)
        segments = segments[:, rows[:, None], columns]
    windows = segments.reshape(-1, height, down, width, across)
    return most_frequent(windows.transpose(2, 3).flatten(3))


def sampled_ids(cells: Tensor, picks: Tensor) -> Tensor:
    """Return [B, S]: for each number of `picks` [B, S] in [0, 1), one of the segments of `cells` [B, H, W].

    All segments of an image are equally probable, whatever their size.
    """
    ordered = cells.flatten(1).sort(dim=1).values  # [B, HW]
    number = torch.zeros_like(ordered, dtype=torch.long)
    number[:, 1:] = (ordered[:, 1:] != ordered[:, :-1]).cumsum(dim=1)  # of each cell's segment, in order
    count = number[:, -1:] + 1
    chosen = torch.minimum((picks * count).long(), count - 1)
    return ordered.gather(1, torch.searchsorted(number, chosen))


def averaged(maps: Tensor, where: Segmented) -> Tensor:
    """Return [B, C, S, 1]: the mean of maps [B, C, H, W] over the cells of each sampled segment."""
    inside = (where.cells.flatten(1)[:, None] == where.ids[:, :, None]).to(maps.dtype)  # [B, S, HW]
    shares = F.normalize(inside, p=1, dim=2)
    return (maps.flatten(2) @ shares.transpose(1, 2))[..., None]
