"""`--check`: read a labelled set from end to end and list all that is wrong with it before a long run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

from dovetail.errors import DovetailError


class Checkable(Protocol):
    """A set that can be asked for its faults."""

    def __len__(self) -> int: ...

    def faults(self) -> Iterator[str]: ...


def report_faults(sets: Sequence[tuple[str, Checkable]]) -> None:
    """Print one line for each fault of each named set, and how many images were read.

    Raises:
        DovetailError: When there is any fault.
    """
    count = 0
    for name, data in sets:
        for fault in data.faults():
            count += 1
            print(f"{name}: {fault}")
    images = sum(len(data) for _, data in sets)
    if count:
        raise DovetailError(f"{count} faults were found in {images} images, listed above; mend them and check again.")
    print(f"{images} images were read; no fault was found.")
