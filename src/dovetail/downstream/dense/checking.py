"""`evaluate dense --check`: lists the faults of labelled images or sequences."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dovetail.downstream.dense.sequences import ImageSequence, find_sequences
from dovetail.downstream.labels.checking import check_segmentation, report_faults
from dovetail.downstream.labels.labelled import existing
from dovetail.downstream.labels.maps import read_label_map
from dovetail.errors import DovetailError


def check_dense(
    data: str | Path, classes: int | None, ignore_index: int, label_map: Sequence[str] = (), *, channels: int = 3
) -> None:
    """Read a dataset and list its faults.

    Raises:
        DovetailError: The dataset has faults.
    """
    sequences = find_sequences(existing(data), read_label_map(label_map, ignore_index))
    if sequences:
        report_faults([("sequences", SequenceFaults(sequences))])
    else:
        check_segmentation(data, classes, ignore_index, label_map, channels=channels)


@dataclass(frozen=True)
class SequenceFaults:
    """Sequences that can be checked for faults."""

    sequences: Sequence[ImageSequence]

    def __len__(self) -> int:
        return sum(len(one.frames) for one in self.sequences)

    def faults(self, on_item: Callable[[int], None] | None = None) -> Iterator[str]:
        """Read all sequences and yield a sentence for each one that cannot be used."""
        for one in self.sequences:
            try:
                one.labels()
                for _ in one.images():
                    if on_item is not None:
                        on_item(1)
            except DovetailError as fault:
                yield str(fault)
