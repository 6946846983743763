"""DAVIS scores of an object in a frame: region IoU (J) and boundary F measure (F).

Source: Perazzi et al. 2016, "A Benchmark Dataset and Evaluation Methodology for Video Object Segmentation", sections 3
and 4; a boundary pixel is found where the other boundary lies within 0.8 % of the frame's diagonal.

Shapes: H x W pixels; all masks are bool.
"""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

Mask: TypeAlias = NDArray[np.bool_]
TOLERANCE = 0.008


def region_iou(predicted: Mask, truth: Mask, void: Mask | None = None) -> float:
    """Return the IoU of two regions [H, W] outside `void`, which is 1 if both are empty."""
    counts = np.ones_like(truth) if void is None else ~void
    union = int((predicted | truth)[counts].sum())
    return int((predicted & truth)[counts].sum()) / union if union else 1.0


def boundary_f(predicted: Mask, truth: Mask, void: Mask | None = None) -> float:
    """Return the boundary F measure of two regions [H, W] outside `void`, which is 1 if neither has a boundary."""
    counts = np.ones_like(truth) if void is None else ~void
    ours, theirs = boundary(predicted & counts), boundary(truth & counts)
    if not ours.any() or not theirs.any():
        return float(not ours.any() and not theirs.any())
    reach = math.ceil(TOLERANCE * math.hypot(*truth.shape))
    precision = float((_distance_to(theirs)[ours] <= reach).mean())
    recall = float((_distance_to(ours)[theirs] <= reach).mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def boundary(region: Mask) -> Mask:
    """Return the boundary pixels [H, W] of a region: those that differ from the pixel below, to the right, or both."""
    padded = np.pad(region, ((0, 1), (0, 1)), mode="edge")
    below, right, both = padded[1:, :-1], padded[:-1, 1:], padded[1:, 1:]
    edge: Mask = (region ^ below) | (region ^ right) | (region ^ both)
    return edge


def _distance_to(edge: Mask) -> NDArray[Any]:
    distance: NDArray[Any] = distance_transform_edt(~edge)
    return distance
