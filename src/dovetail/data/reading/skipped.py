"""What could not be read: written down once each, and the end of a run in which most cannot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypedDict

from dovetail.errors import DataError, counted
from dovetail.files.schema import parsed
from dovetail.views.batch import ViewBatch

_FEWEST_TRIED = 32  # fewer tell nothing about the rest of the source


class Line(TypedDict):
    """A line of the file."""

    path: str
    reason: str


class SkippedLog:
    """Writes `skipped.jsonl`: one line {"path", "reason"} for each unreadable image, over resumed runs too."""

    def __init__(self, path: Path | None, num_images: int) -> None:
        """Go on with the file at `path` if there is one; None writes nothing and only counts.

        Args:
            path: The file, in the run's folder.
            num_images: Of the source.
        """
        self._path = path
        self._num_images = num_images
        self._tried = 0
        self._unreadable: set[int] = set()  # nothing is kept for what can be read: there may be a billion
        self._known: set[str] = set()
        self._offset = 0  # of the first line that is not yet read whole
        self._read()

    @property
    def count(self) -> int:
        """The number of images named so far."""
        return len(self._known)

    def record(self, batch: ViewBatch) -> None:
        """Take note of what a batch found.

        Raises:
            DataError: More than half of the images tried (at least 32, or all there are) cannot be read.
        """
        used = batch.used.numpy()
        for skipped in batch.skipped:
            self._unreadable.add(skipped.index)
            self._write(skipped.path, skipped.reason)
        self._tried += int((used >= 0).sum()) + len(batch.skipped)
        num_tried, num_bad = min(self._tried, self._num_images), len(self._unreadable)
        enough = num_tried >= min(_FEWEST_TRIED, self._num_images)
        if batch.skipped and ((enough and num_bad * 2 > num_tried) or (used < 0).any()):
            example = batch.skipped[0]
            raise DataError(
                f"{num_bad} of {counted(num_tried, 'image')} tried cannot be read, such as {example.path!r} "
                f"({example.reason}); check the data{f', all are named in {self._path}' if self._path else ''}."
            )

    def _write(self, path: str, reason: str) -> None:
        if path in self._known:
            return
        if self._path is not None:
            # Other ranks write the same file: what they named meanwhile is not named again.
            torn = self._read()
            if path not in self._known:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a", encoding="utf-8") as file:
                    file.write("\n" * torn + json.dumps({"path": path, "reason": reason}) + "\n")
        self._known.add(path)

    def _read(self) -> bool:
        """Take in what was written since the last time; return whether the file ends within a line."""
        if self._path is None or not self._path.exists():
            return False
        with self._path.open("rb") as file:
            file.seek(self._offset)
            *whole, rest = file.read().split(b"\n")
        self._offset += sum(len(line) + 1 for line in whole)
        for line in (*whole, rest):
            found = parsed(line, Line)
            if found is not None:
                self._known.add(found["path"])
        return bool(rest)
