"""Datasets of images with one class each.

Shapes: C channels, H x W pixels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

from torch import Tensor

from dovetail.data.reading.decode import LazyImage
from dovetail.data.reading.values import all_levels
from dovetail.downstream.labels.labelled import faults_named
from dovetail.errors import DataError, DovetailError


class ClassSet(ABC):
    """Images with classes, by index.

    Attributes:
        labels: Class of each image.
        names: Class names: label l is names[l].
    """

    labels: tuple[int, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def open(self, index: int, channels: int) -> LazyImage:
        """Open an image without decoding its pixels. Raise `UnreadableError` if it cannot be read."""

    @abstractmethod
    def called(self, index: int) -> str:
        """Return the name of an image for error messages."""

    @abstractmethod
    def place(self) -> str:
        """Return the location of the dataset, such as "in FOLDER"."""

    @abstractmethod
    def files(self) -> list[Path]:
        """Return all files of the dataset."""

    def content(self) -> tuple[str, ...]:
        """Return hashes that identify the dataset, in addition to its files."""
        return ()

    @abstractmethod
    def identity(self) -> str:
        """Return a string that identifies these images in this order."""

    @abstractmethod
    def subset(self, indices: list[int]) -> Self:
        """Return a dataset of the images at `indices`, in that order."""

    def pixels(self, index: int, *, channels: int, side: int) -> Tensor:
        """Return pixels [C, H, W] in 0 to 255, decoded no larger than needed for a shorter side of twice `side` pixels.

        They are uint8, or float32 with all levels of a deep image if a value range is set.

        Raises:
            DovetailError: The image cannot be read.
        """
        with faults_named(self.called(index)), all_levels():
            photo = self.open(index, channels)
            spare = min(photo.width_px, photo.height_px) / (2 * side)
            return photo.decode(max(divisor for divisor in (1, 2, 4, 8) if divisor == 1 or divisor <= spare))

    def faults_of_classes(self) -> Iterator[str]:
        """Yield a sentence for each class without images."""
        for label in sorted(set(range(len(self.names))) - set(self.labels)):
            yield f"Class {self.names[label]!r} has no image {self.place()}; add some."

    def faults(self, on_item: Callable[[int], None] | None = None) -> Iterator[str]:
        """Read the whole dataset and yield a sentence for each image that cannot be used."""
        for index in range(len(self)):
            try:
                self.pixels(index, channels=3, side=2**30)  # full size: decoding at a smaller size may hide damage
            except DovetailError as fault:
                yield str(fault)
            if on_item is not None:
                on_item(1)


def check_several(names: Sequence[str], place: Path | str) -> None:
    """Raise `DataError` if there are fewer than two classes."""
    if len(names) < 2:
        raise DataError(f"{place} has only the class {names[0]!r}; use at least two classes.")
