"""COCO's objects, images and sets, as they are used."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faster_coco_eval.core.mask as coco_mask
import numpy as np
from torch import Tensor

from dovetail.downstream.labels.labelled import read_image_of_size
from dovetail.errors import DataError

THINNEST_PX = 0.01  # of the sides of a box that has an area


@dataclass(frozen=True)
class CocoObject:
    """One annotation.

    Attributes:
        id: As in the file.
        label: Index into the set's categories.
        box: Left, top, width, height in pixels.
        segmentation: Polygons of three points or more (lists of x, y in turn) or a run-length dictionary; None where
            there is none.
        area: In pixels, as the file says it.
        crowd: Whether it stands for a group.
    """

    id: int
    label: int
    box: tuple[float, float, float, float]
    segmentation: Any
    area: float
    crowd: bool

    @property
    def has_area(self) -> bool:
        """Whether the box holds anything that can be told from nothing."""
        return self.box[2] > THINNEST_PX and self.box[3] > THINNEST_PX

    @property
    def touched(self) -> tuple[slice, slice]:
        """The rows and columns of the pixels that the box touches."""
        left, top, width, height = self.box
        rows = slice(max(math.floor(top), 0), max(math.ceil(top + height), 0))
        return rows, slice(max(math.floor(left), 0), max(math.ceil(left + width), 0))

    def run_length(self, height: int, width: int) -> dict[str, Any] | None:
        """Return the mask as compressed run-lengths; None without a mask."""
        return as_run_length(self.segmentation, height, width)

    def mask(self, height: int, width: int) -> np.ndarray[Any, Any]:
        """Return the mask [H, W] as bool; all False without a mask."""
        coded = self.run_length(height, width)
        if coded is None:
            return np.zeros((height, width), dtype=bool)
        return np.asarray(coco_mask.decode(coded)).astype(bool)


@dataclass(frozen=True)
class CocoImage:
    """One image with its objects, possibly none."""

    id: int
    path: Path
    width: int
    height: int
    objects: tuple[CocoObject, ...]

    @property
    def unmasked(self) -> tuple[CocoObject, ...]:
        """The objects that have a box alone, crowds included."""
        return tuple(one for one in self.objects if one.has_area and one.segmentation is None)

    def pixels(self) -> Tensor:
        """Return [3, H, W] uint8 of the size that the annotations say.

        An image that its EXIF tag turns is turned, unless the annotations' size is that of the file as it lies.

        Raises:
            DataError: Where the file cannot be read or has another size.
        """
        found = read_image_of_size(self.path, (self.height, self.width))
        if tuple(found.shape[1:]) != (self.height, self.width):
            raise DataError(
                f"{self.path} is {found.shape[2]}x{found.shape[1]} pixels, but its annotations say "
                f"{self.width}x{self.height}; correct the annotations."
            )
        return found


def run_length_of(mask: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Return a mask [H, W] of 0 and 1 as compressed run-lengths that JSON can hold."""
    coded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    counts = coded["counts"]
    text = counts.decode("ascii") if isinstance(counts, bytes) else str(counts)
    return {"size": [int(side) for side in coded["size"]], "counts": text}


def as_run_length(segmentation: Any, height: int, width: int) -> dict[str, Any] | None:
    """Return polygons or run-lengths as one compressed run-length mask; None for None."""
    if segmentation is None:
        return None
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            coded: dict[str, Any] = coco_mask.frPyObjects(segmentation, *segmentation["size"])
            return coded
        return dict(segmentation)
    merged: dict[str, Any] = coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width))
    return merged
