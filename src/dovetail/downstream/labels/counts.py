"""Counts the labels in the masks of a dataset, and checks whether they are class numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dovetail.downstream.labels.maps import LARGEST
from dovetail.downstream.labels.mask_sets import StoredMasks
from dovetail.downstream.progress import progress
from dovetail.errors import DataError, DovetailError, counted

MOST_PER_MASK = 24  # largest average number of labels in a mask; ADE20K, with 150 classes, has 10
MOST_LISTED = 12


@dataclass(frozen=True)
class LabelCounts:
    """The labels in the masks of a dataset.

    Attributes:
        labels: Labels in ascending order, without the ignored one.
        ignored: Whether the ignored label occurs.
        ignore_index: Ignored label, or -1 for none.
        per_mask: Average number of labels in a mask.
        place: Location of the masks, such as "in FOLDER".
        binary: Names of the masks that contain only label 0 and the ignored one.
    """

    labels: tuple[int, ...]
    ignored: bool
    ignore_index: int
    per_mask: float
    place: str
    binary: tuple[str, ...] = ()

    @property
    def classes(self) -> int:
        """One more than the largest label."""
        return max(self.labels, default=0) + 1

    def __str__(self) -> str:
        ignored = f"; {self.ignore_index} is ignored" if self.ignored else ""
        return f"Labels found: {ranges(self.labels) or 'none'}{ignored}.{self.doubt()}"

    def doubt(self) -> str:
        """Return a sentence on masks of only 0 and the ignored label among masks of classes; empty if there are none.

        Such masks are often binary ones, of another source, whose 255 marks a class.
        """
        if not self.binary or max(self.labels, default=0) == 0:
            return ""
        one, such = len(self.binary) == 1, self.binary[0]
        return (
            f" {such if one else counted(len(self.binary), 'mask')} {'has' if one else 'have'} only label 0 and "
            f"{self.ignore_index}, while other masks have classes"
            f"{'' if one else f' (such as {such})'}; if {self.ignore_index} marks a class "
            f"there, save {'it' if one else 'them'} with the number of the class."
        )

    def check(self, *, classes_given: bool = False) -> None:
        """Raise `DataError` if labels cannot be class numbers: a single one, large gaps, or too many per mask.

        Args:
            classes_given: Whether the number of classes is specified, which allows gaps and many labels per mask.
        """
        ignored = f", and {self.ignore_index} is ignored" if self.ignored else ""
        if self.labels == (0,) and self.ignored:
            raise DataError.advising(
                f"All masks {self.place} contain only label 0 and {self.ignore_index}, and {self.ignore_index} is "
                "ignored",
                f"if {self.ignore_index} marks a class, add --label-map {self.ignore_index}:1.",
            )
        if max(self.labels, default=0) == 0:
            held = " and ".join([*map(str, self.labels), *([str(self.ignore_index)] * self.ignored)])
            raise DataError(
                f"All masks {self.place} contain only label {held}{ignored}; number the classes 0, 1, 2 and so on."
            )
        if classes_given:
            return
        if self.per_mask > MOST_PER_MASK:
            raise DataError(
                f"The masks {self.place} contain {len(self.labels)} labels, {self.per_mask:.0f} per mask on average. "
                "JPEG and smooth resizing mix labels like this: save the masks as PNG from their source, or use "
                f"--classes {self.classes} if these are class numbers."
            )
        if len(self.labels) * 2 < self.classes:
            raise DataError.advising(
                f"The masks {self.place} contain the labels {ranges(self.labels)}{ignored}: most numbers from 0 to "
                f"{self.classes - 1} never occur",
                f"To number the classes from 0, add --label-map {self.pairs()}; if the labels are class numbers, add "
                f"--classes {self.classes}.",
                joint=". ",
            )

    def pairs(self) -> str:
        """Return the `--label-map` that numbers the labels from 0; labels that keep their number are left out."""
        pairs = [f"{label}:{index}" for index, label in enumerate(self.labels) if label != index]
        return " ".join(pairs) if len(pairs) <= MOST_LISTED else "TABLE (a file with a name and a label on each line)"


def ranges(labels: Sequence[int]) -> str:
    """Return numbers as ranges such as "0 to 3, 7". Only the first ranges are listed."""
    found: list[list[int]] = []
    for label in labels:
        if found and found[-1][1] == label - 1:
            found[-1][1] = label
        else:
            found.append([label, label])
    words = [str(low) if low == high else f"{low} to {high}" for low, high in found]
    return ", ".join(words[:MOST_LISTED]) + (f" and {len(labels)} in all" if len(words) > MOST_LISTED else "")


def labels_in(sets: Sequence[StoredMasks], *, skip_faults: bool = False) -> LabelCounts:
    """Return the labels in the masks of all datasets.

    Args:
        sets: Masks.
        skip_faults: Whether to skip unreadable masks.
    """
    ignore = sets[0].ignore_index
    seen: set[int] = set()
    per_mask: list[int] = []
    binary: list[str] = []
    with progress("counting classes", sum(len(masks) for masks in sets)) as advance:
        for name, mask in masks_of(sets, skip_faults=skip_faults):
            values = values_in(mask)
            binary += [name] if values == {0, ignore} else []
            seen |= values
            per_mask.append(len(values - {ignore}))
            advance(1)
    labels = tuple(sorted(seen - {ignore}))
    average = sum(per_mask) / max(len(per_mask), 1)
    return LabelCounts(labels, ignore in seen, ignore, average, sets[0].place(), tuple(binary))


def values_in(mask: Tensor) -> set[int]:
    """Return the distinct values of a mask."""
    if int(mask.min()) < 0 or int(mask.max()) > LARGEST:
        return set(torch.unique(mask).tolist())
    return set(torch.bincount(mask.flatten()).nonzero().flatten().tolist())  # counting is faster than sorting


def masks_of(sets: Sequence[StoredMasks], *, skip_faults: bool) -> Iterable[tuple[str, Tensor]]:
    """Yield the masks of all datasets with their names."""
    for masks in sets:
        for index in range(len(masks)):
            try:
                yield masks.mask_name(index), masks.raw_labels(index)
            except DovetailError:
                if not skip_faults:
                    raise
