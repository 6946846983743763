"""Label propagation: propagates the labels of a sequence's first frame to the other frames with frozen features.

Every cell of a frame gets the labels of the most similar cells in the first frame and in the last few frames before it,
within a window around its position:

    a_i = exp(<q, k_i> / (|q| |k_i| tau)),    y = sum_{i in most similar k} a_i y_i / sum_i a_i

The labels of a frame are resized bilinearly to its mask, each class is rescaled to [0, 1], and the largest one is used.
Scores are J and F of DAVIS (Pont-Tuset et al. 2017, https://arxiv.org/abs/1704.00675): region IoU and boundary F
measure, averaged over all frames but the first and the last, then over objects.

Source: DINO's protocol (https://arxiv.org/abs/2104.14294, section 4.2.2), which is that of Jabri et al. 2020
(https://arxiv.org/abs/2006.14613): k = 5, seven frames before and the first, a window of 12 cells to each side,
tau = 0.1. Departures: frames are resized to a square of the image size instead of 480 pixels on their shorter side, so
compare scores at one image size only; the first frame's labels are the shares of each cell instead of the nearest one.

Shapes: C channels, h x w cells, n = h w, F frames, H x W pixels, K labels with the background.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dovetail.downstream.dense.boundaries import boundary_f, region_iou
from dovetail.downstream.dense.cells import as_cells, cell_shares
from dovetail.downstream.labels.mask_sets import classes_of
from dovetail.downstream.probe.knn import pieces
from dovetail.downstream.segment.metrics import IGNORE_INDEX
from dovetail.downstream.table.results import Score, one_value
from dovetail.errors import DataError

CHUNK = 1024


@dataclass(frozen=True)
class PropagationOptions:
    """Options for label propagation.

    Attributes:
        neighbours: Number of most similar cells k.
        frames: Number of previous frames to use in addition to the first one.
        radius: Radius of the window in cells.
        temperature: Temperature tau.
    """

    neighbours: int = 5
    frames: int = 7
    radius: int = 12
    temperature: float = 0.1


@dataclass(frozen=True)
class SequenceScores:
    """J and F of each object of a sequence, in [0, 1]."""

    name: str
    region: tuple[float, ...]
    boundary: tuple[float, ...]


def propagate(
    maps: Iterable[Tensor],
    first: Tensor,
    *,
    labels: int,
    options: PropagationOptions | None = None,
    ignore_index: int = IGNORE_INDEX,
) -> Iterator[Tensor]:
    """Yield the predicted labels [H, W] int64 of every frame but the first.

    Args:
        maps: Feature map [C, h, w] of each frame, in order. All have the same size.
        first: Labels [H, W] int64 of the first frame.
        labels: Number of labels K. Labels are 0 .. K - 1 (0 is the background) or the ignored label.
        options: Options for label propagation.
        ignore_index: Label of ignored pixels.
    """
    options = options or PropagationOptions()
    known: tuple[Tensor, Tensor] | None = None
    recent: deque[tuple[Tensor, Tensor]] = deque(maxlen=options.frames)
    for values in maps:
        grid = (values.shape[1], values.shape[2])
        keys = F.normalize(as_cells(values.float()), dim=1)
        if known is None:
            shares = cell_shares(first.to(keys.device), grid, classes=labels, ignore_index=ignore_index)
            known = (keys, shares / shares.sum(1, keepdim=True).clamp(min=1e-12))
            continue
        carried = _carried(keys, [known, *recent], grid, options)
        recent.append((keys, carried))
        yield _at_pixels(carried, grid, (first.shape[0], first.shape[1]))


def _carried(
    queries: Tensor, sources: Sequence[tuple[Tensor, Tensor]], grid: tuple[int, int], options: PropagationOptions
) -> Tensor:
    """Return the labels [n, K] of queries [n, C] from the keys and labels of previous frames."""
    keys, labels = (torch.cat([source[part] for source in sources]) for part in (0, 1))
    place = torch.arange(grid[0] * grid[1], device=queries.device)
    rows, columns = place // grid[1], place % grid[1]
    found: list[Tensor] = []
    for chunk in pieces(place, CHUNK):
        apart = torch.maximum(
            (rows[chunk, None] - rows[None]).abs(), (columns[chunk, None] - columns[None]).abs()
        )  # [q, n]
        outside = (apart > options.radius).repeat(1, len(sources))
        similar = (queries[chunk] @ keys.T).masked_fill(outside, -torch.inf)
        best, index = similar.topk(min(options.neighbours, similar.shape[1]), dim=1)
        found.append((labels[index] * (best / options.temperature).softmax(1)[..., None]).sum(1))
    return torch.cat(found)


def _at_pixels(labels: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Return the label of every pixel [H, W] from the labels [n, K] of cells."""
    maps = labels.T.reshape(1, -1, *grid)
    pixels = F.interpolate(maps, size=size, mode="bilinear", align_corners=False)[0]
    low, high = pixels.amin((1, 2), keepdim=True), pixels.amax((1, 2), keepdim=True)
    stretched = torch.where(high > 0, (pixels - low) / (high - low).clamp(min=1e-12), pixels)
    return stretched.argmax(0)


def sequence_scores(
    name: str, predictions: Iterable[Tensor], masks: Sequence[Tensor | None], *, ignore_index: int = IGNORE_INDEX
) -> SequenceScores:
    """Return J and F of each object of a sequence.

    Args:
        name: Name of the sequence.
        predictions: Predicted labels [H, W] of every frame but the first.
        masks: Labels [H, W] of every frame, None for frames without a mask.
        ignore_index: Label of ignored pixels.

    Raises:
        DataError: The first frame has no object, or no later frame has a mask.
    """
    first = masks[0]
    objects = [] if first is None else [one for one in classes_of(first, ignore_index) if one != 0]
    if not objects:
        raise DataError(f"The first mask of the sequence {name} has no objects; label its objects 1, 2 and so on.")
    scored = range(1, len(masks) - 1) if len(masks) > 2 else range(1, len(masks))
    region: dict[int, list[float]] = {one: [] for one in objects}
    boundary: dict[int, list[float]] = {one: [] for one in objects}
    for index, predicted in enumerate(predictions, 1):
        truth = masks[index]
        if truth is None or index not in scored:
            continue
        guess, right = predicted.cpu().numpy(), truth.cpu().numpy()
        void = right == ignore_index
        for one in objects:
            region[one].append(region_iou(guess == one, right == one, void))
            boundary[one].append(boundary_f(guess == one, right == one, void))
    if not region[objects[0]]:
        raise DataError(f"The sequence {name} has no mask after the first frame to evaluate on; add at least one.")
    means = ([float(np.mean(values[one])) for one in objects] for values in (region, boundary))
    return SequenceScores(name, *(tuple(values) for values in means))


def over_sequences(found: Sequence[SequenceScores], *, seed: int = 0, draws: int = 1000) -> dict[str, Score]:
    """Return "J&F", "J" and "F" over all objects, with the bootstrap interval over sequences."""
    sizes = np.array([len(one.region) for one in found], dtype=float)
    sums = np.array([[sum(one.region), sum(one.boundary)] for one in found])  # [sequences, 2]
    times = np.random.default_rng((seed, 3)).multinomial(
        len(found), np.full(len(found), 1 / len(found)), size=draws
    )  # [draws, sequences]
    means = (times @ sums) / (times @ sizes)[:, None]
    whole = sums.sum(0) / sizes.sum()
    columns = {"J&F": (whole.mean(), means.mean(1)), "J": (whole[0], means[:, 0]), "F": (whole[1], means[:, 1])}
    scores: dict[str, Score] = {}
    for name, (value, drawn) in columns.items():
        low, high = (float(one) for one in np.percentile(drawn, [2.5, 97.5]))
        score = Score(float(value), (float(value),), None, low, high, "sequences")
        scores[name] = score if len(found) > 1 else one_value(score.mean)
    return scores
