"""Segmentation datasets: mask files, or masks drawn from objects.

Shapes: H x W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor

from dovetail.downstream.labels.coco import CocoSet
from dovetail.downstream.labels.labelled import (
    InMemory,
    Labelled,
    LabelledSet,
    check_labels,
    check_sizes,
    read_image_of_size,
    read_mask,
)
from dovetail.downstream.labels.maps import LabelMap
from dovetail.downstream.segment.metrics import IGNORE_INDEX
from dovetail.errors import DataError, DovetailError


class SegmentationSet(ABC):
    """A labelled dataset for segmentation.

    Attributes:
        classes: Number of classes. Labels are 0 .. classes - 1.
        ignore_index: Label of ignored pixels.
        channels: Number of channels of the images.
    """

    classes: int
    ignore_index: int
    channels: int

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int) -> Labelled: ...

    @abstractmethod
    def classes_in(self, index: int) -> list[int]:
        """Return the classes that occur in an image."""

    @abstractmethod
    def files(self) -> list[Path]:
        """Return all existing files of the dataset."""

    def content(self) -> tuple[str, ...]:
        """Return hashes that identify the dataset, in addition to its files."""
        return ()

    @abstractmethod
    def place(self) -> str:
        """Return the location of the masks, such as "in FOLDER"."""

    @abstractmethod
    def subset(self, indices: list[int]) -> Self:
        """Return the images at `indices`."""

    @abstractmethod
    def with_channels(self, channels: int) -> Self:
        """Return the same dataset, whose images are read with another number of channels."""

    def faults(self, on_item: Callable[[int], None] | None = None) -> Iterator[str]:
        """Read the whole dataset and yield a sentence for each image or mask that cannot be used."""
        for index in range(len(self)):
            try:
                self[index]
            except DovetailError as fault:
                yield str(fault)
            if on_item is not None:
                on_item(1)


class StoredMasks(SegmentationSet):
    """A labelled dataset whose masks are stored as images."""

    @abstractmethod
    def raw_labels(self, index: int) -> Tensor:
        """Return a mask [H, W] with the labels of the file, after applying the label map."""

    @abstractmethod
    def mask_name(self, index: int) -> str:
        """Return the name of a mask: its path if it has one."""

    def labels(self, index: int) -> Tensor:
        """Return a mask [H, W] of classes."""
        return self.raw_labels(index)

    def classes_in(self, index: int) -> list[int]:
        return classes_of(self.labels(index), self.ignore_index)


@dataclass(frozen=True)
class MaskFiles(StoredMasks):
    """Image and mask files, which are read on demand.

    Attributes:
        images: Paths of the images.
        masks: Path of each image's mask.
        classes: Number of classes. Labels are 0 .. classes - 1 after `relabel`.
        relabel: Maps label l in a file to relabel[l], or None to keep labels.
        ignore_index: Label of ignored pixels.
        label_map: Classes of the values or colours in the files, or None if the values are labels.
        channels: Number of channels of the images.
    """

    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    classes: int
    relabel: tuple[int, ...] | None = None
    ignore_index: int = IGNORE_INDEX
    label_map: LabelMap | None = None
    channels: int = 3

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Labelled:
        mask = self.labels(index)
        image = read_image_of_size(self.images[index], mask.shape, channels=self.channels)
        check_sizes(image, mask, str(self.masks[index]), self.images[index].name)
        return Labelled(image, mask)

    def raw_labels(self, index: int) -> Tensor:
        return read_mask(self.masks[index], label_map=self.label_map)

    def mask_name(self, index: int) -> str:
        return str(self.masks[index])

    def labels(self, index: int) -> Tensor:
        """Return a mask [H, W], relabelled and checked."""
        mask = self.raw_labels(index)
        if self.relabel is None:
            check_labels(mask, self.classes, self.ignore_index, str(self.masks[index]))
            return mask
        table = torch.full((max(int(mask.max()) + 1, len(self.relabel)),), -1, dtype=torch.int64)
        table[: len(self.relabel)] = torch.tensor(self.relabel)
        if len(table) > self.ignore_index:
            table[self.ignore_index] = self.ignore_index
        relabelled = table[mask.clamp(min=0)]
        if bool((relabelled == -1).any()):
            raise DataError(
                f"{self.masks[index]} contains label {int(mask[relabelled == -1].max())}, beyond the "
                f"{len(self.relabel)} of its format; save the masks again."
            )
        return relabelled

    def files(self) -> list[Path]:
        return [*self.images, *self.masks]

    def place(self) -> str:
        return f"in {self.masks[0].parent}"

    def subset(self, indices: list[int]) -> MaskFiles:
        images, masks = (tuple(files[index] for index in indices) for files in (self.images, self.masks))
        return replace(self, images=images, masks=masks)

    def with_channels(self, channels: int) -> MaskFiles:
        return replace(self, channels=channels)


@dataclass(frozen=True)
class CocoMasks(SegmentationSet):
    """Semantic masks drawn from the objects of a COCO dataset, including crowds.

    Label 0 is the background, and label c + 1 is category c. The box of an object without a mask is ignored, except for
    pixels in masks of other objects.
    """

    coco: CocoSet
    ignore_index: int = IGNORE_INDEX
    channels: int = 3

    @property
    def classes(self) -> int:  # type: ignore[override]
        """The categories and background."""
        return len(self.coco.names) + 1

    @property
    def unmasked(self) -> int:
        """Number of objects with a box but no mask."""
        return sum(len(image.unmasked) for image in self.coco.images)

    def __len__(self) -> int:
        return len(self.coco)

    def __getitem__(self, index: int) -> Labelled:
        found = self.coco.images[index]
        image = found.pixels(self.channels)
        mask = np.zeros((found.height, found.width), dtype=np.int64)
        for one in found.unmasked:  # its position in its box is unknown
            mask[one.touched] = self.ignore_index
        for one in sorted(found.objects, key=lambda one: -one.area):
            mask[one.mask(found.height, found.width)] = one.label + 1
        return Labelled(image, torch.from_numpy(mask))

    def classes_in(self, index: int) -> list[int]:
        """Return the classes that occur in an image, background and objects without a mask left out."""
        objects = self.coco.images[index].objects
        return sorted({one.label + 1 for one in objects if one.segmentation is not None})

    def files(self) -> list[Path]:
        return [self.coco.path, *(image.path for image in self.coco.images if image.path.is_file())]

    def place(self) -> str:
        return f"in {self.coco.path}"

    def subset(self, indices: list[int]) -> CocoMasks:
        return replace(self, coco=self.coco.subset(indices))

    def with_channels(self, channels: int) -> CocoMasks:
        return replace(self, channels=channels)


def check_told_apart(data: SegmentationSet, read: LabelledSet, purpose: str, *, least: int) -> None:
    """Raise `DataError` where the masks of `data`, in memory as `read`, have fewer classes than `least`."""
    if isinstance(read, InMemory):
        check_classes(data, (classes_of(item.mask, data.ignore_index) for item in read.items), purpose, least=least)


def check_classes(data: SegmentationSet, classes: Iterable[Sequence[int]], purpose: str, *, least: int) -> None:
    """Raise `DataError` if the masks of `data` have fewer classes than `least`.

    Args:
        data: Dataset with masks.
        classes: Classes in each mask, which are read until there are enough.
        purpose: "training" or "evaluation".
        least: Required number of classes.
    """
    seen: set[int] = set()
    for some in classes:
        seen |= {*some}
        if len(seen) >= least:
            return
    held = f"only class {min(seen)}" if seen else "no labelled pixels"
    raise DataError(
        f"The masks for {purpose} {data.place()} contain {held} (ignored: {data.ignore_index}); number the classes "
        "0, 1, 2 and so on."
    )


def classes_of(mask: Tensor, ignore_index: int) -> list[int]:
    """Return the classes that occur in a mask."""
    found: list[int] = torch.unique(mask).tolist()
    return [label for label in found if label != ignore_index]
