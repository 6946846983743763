"""COCO objects and images, and the part of an object inside its image.

If a box touches no anchor, torchvision's matcher assigns all anchors of the image to it. So only the part of an object
inside its image is used for training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faster_coco_eval.core.mask as coco_mask
import numpy as np
from torch import Tensor

from dovetail.downstream.labels.labelled import read_image_of_size
from dovetail.errors import DataError

Box = tuple[float, float, float, float]

LEAST_PX = 0.99  # smallest side of a box: a pixel, with tolerance for rounding; mmdetection skips smaller boxes, too
SLACK_PX = 0.01  # tolerance for objects outside their image
THINNEST_PX = 0.01  # smallest side of a box with an area


@dataclass(frozen=True)
class CocoObject:
    """One annotation.

    Attributes:
        id: Id in the file.
        label: Index of its category in the dataset.
        box: Left, top, width, height in pixels.
        segmentation: Polygons of three or more points (lists of alternating x and y), a run-length dictionary, or None.
        area: Area in pixels, from the file.
        crowd: Whether it is a group of objects.
    """

    id: int
    label: int
    box: Box
    segmentation: Any
    area: float
    crowd: bool

    @property
    def has_area(self) -> bool:
        """Whether the box has an area."""
        return self.box[2] > THINNEST_PX and self.box[3] > THINNEST_PX

    @property
    def touched(self) -> tuple[slice, slice]:
        """Rows and columns of the pixels that the box touches."""
        left, top, width, height = self.box
        rows = slice(max(math.floor(top), 0), max(math.ceil(top + height), 0))
        return rows, slice(max(math.floor(left), 0), max(math.ceil(left + width), 0))

    def run_length(self, height: int, width: int) -> dict[str, Any] | None:
        """Return the mask as compressed run-lengths, or None without a mask."""
        return as_run_length(self.segmentation, height, width)

    def mask(self, height: int, width: int) -> np.ndarray[Any, Any]:
        """Return the mask [H, W] as bool, which is all False without a mask."""
        coded = self.run_length(height, width)
        if coded is None:
            return np.zeros((height, width), dtype=bool)
        return np.asarray(coco_mask.decode(coded)).astype(bool)


@dataclass(frozen=True)
class CocoImage:
    """An image with its objects, which may be none."""

    id: int
    path: Path
    width: int
    height: int
    objects: tuple[CocoObject, ...]

    @property
    def unmasked(self) -> tuple[CocoObject, ...]:
        """Objects with a box but no mask, including crowds."""
        return tuple(one for one in self.objects if one.has_area and one.segmentation is None)

    def pixels(self, channels: int = 3) -> Tensor:
        """Return pixels [C, H, W] in 0 to 255 with the size in the annotations (see `read_image`).

        The EXIF orientation is applied unless the annotations have the size of the stored image.

        Raises:
            DataError: The file cannot be read or has another size.
        """
        found = read_image_of_size(self.path, (self.height, self.width), channels=channels)
        if tuple(found.shape[1:]) != (self.height, self.width):
            raise DataError(
                f"{self.path} is {found.shape[2]}x{found.shape[1]} pixels, but its annotations say "
                f"{self.width}x{self.height}; correct the annotations."
            )
        return found


def run_length_of(mask: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Convert a mask [H, W] of 0 and 1 to compressed run-lengths for JSON."""
    coded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = coded["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else str(counts)
    return {"size": [int(side) for side in coded["size"]], "counts": text}


def as_run_length(segmentation: Any, height: int, width: int) -> dict[str, Any] | None:
    """Convert polygons or run-lengths to a compressed run-length mask. None is returned unchanged."""
    if segmentation is None:
        return None
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            coded: dict[str, Any] = coco_mask.frPyObjects(segmentation, *segmentation["size"])
            return coded
        return dict(segmentation)
    merged: dict[str, Any] = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    return merged


def box_within(one: CocoObject, image: CocoImage) -> Box | None:
    """Return the part of a box inside its image as left, top, right, bottom, or None if it is less than a pixel."""
    left, top, width, height = one.box
    right, bottom = min(left + width, image.width), min(top + height, image.height)
    left, top = max(left, 0.0), max(top, 0.0)
    if right - left < LEAST_PX or bottom - top < LEAST_PX:
        return None
    return left, top, right, bottom


def reaches_out(one: CocoObject, image: CocoImage) -> bool:
    """Return whether the box or a polygon of an object extends beyond the image."""
    left, top, width, height = one.box
    parts: list[list[float]] = one.segmentation if isinstance(one.segmentation, list) else []
    across = [left, left + width, *(value for part in parts for value in part[::2])]
    down = [top, top + height, *(value for part in parts for value in part[1::2])]
    inside = min(*across, *down) >= -SLACK_PX
    return not (inside and max(across) <= image.width + SLACK_PX and max(down) <= image.height + SLACK_PX)


def mask_is_empty(one: CocoObject, image: CocoImage) -> bool:
    """Return whether an object has a mask without any pixel in its image."""
    if isinstance(one.segmentation, list) and not reaches_out(one, image) and any(map(is_thick, one.segmentation)):
        return False  # drawing all polygons of a large dataset takes minutes
    coded = one.run_length(image.height, image.width)
    return coded is not None and int(coco_mask.area(coded)) == 0


def is_thick(points: Sequence[float]) -> bool:
    """Return whether a polygon (alternating x and y) is more than two pixels thick on average, so it has a pixel."""
    across, down = points[::2], points[1::2]
    twice = sum(across[i - 1] * down[i] - across[i] * down[i - 1] for i in range(len(across)))
    return abs(twice) / 2 > 2 * max(max(across) - min(across), max(down) - min(down), 1)
