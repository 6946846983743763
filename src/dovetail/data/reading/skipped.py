"""Logs unreadable images, each of them once, and stops a run in which most images are unreadable."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import TypedDict

from dovetail.errors import DataError, counted
from dovetail.files.schema import parsed, read_lines
from dovetail.views.batch import ViewBatch

_FEWEST_TRIED = 32  # too few images say nothing about the rest of the source
PLACE = r"#\d+$|\[\d+\]$"  # ends the name of an image within a file


class Line(TypedDict):
    """A line of `skipped.jsonl`."""

    path: str
    reason: str


def unreadable_in(path: Path) -> set[str]:
    """Return the names of the unreadable images in a `skipped.jsonl`, with absolute paths."""
    return {absolute(line["path"]) for line in read_lines(path, Line)}


def absolute(name: str) -> str:
    """Return the name of an image with an absolute path, so that it has one name in every spelling of its folder.

    Names that are no paths, such as "Photos[3]" of a dataset, are returned unchanged, as are names inside an archive.
    """
    first = re.sub(PLACE, "", Path(name).parts[0]) if name else ""
    if not first or not Path(first).exists():
        return name
    archive = next((str(path) for path in Path(name).parents if path.is_file()), "")
    within = str(Path(name)).removeprefix(archive) if archive else ""
    return os.path.abspath(archive or name) + within  # noqa: PTH100 - keeps links


class SkippedLog:
    """Writes `skipped.jsonl`: one line {"path", "reason"} per unreadable image. Resumed runs append to it.

    Paths are absolute, because a resumed run may spell the folder of its images differently.
    """

    def __init__(self, path: Path | None, num_images: int) -> None:
        """Open the log.

        Args:
            path: The file in the run folder, which is continued if it exists. None only counts.
            num_images: Number of images in the source.
        """
        self._path = path
        self._num_images = num_images
        self._tried = 0
        self._unreadable: set[int] = set()  # readable images are not kept: there may be a billion
        self._known: set[str] = set()
        self._offset = 0  # offset of the first line that has not been read completely
        self._read()

    @property
    def count(self) -> int:
        """Number of images logged so far."""
        return len(self._known)

    def record(self, batch: ViewBatch) -> None:
        """Log the unreadable images of a batch.

        Raises:
            DataError: More than half of the images tried so far (at least 32, or all images) cannot be read.
        """
        used = batch.used.numpy()
        for skipped in batch.skipped:
            self._unreadable.add(skipped.index)
            self._write(absolute(skipped.path), skipped.reason)
        self._tried += int((used >= 0).sum()) + len(batch.skipped)
        num_tried, num_bad = min(self._tried, self._num_images), len(self._unreadable)
        enough = num_tried >= min(_FEWEST_TRIED, self._num_images)
        if batch.skipped and ((enough and num_bad * 2 > num_tried) or (used < 0).any()):
            example = batch.skipped[0]
            raise DataError(
                f"{num_bad} of {counted(num_tried, 'image')} cannot be read, such as {example.path!r} "
                f"({example.reason}); check the data{f' ({self._path} lists all of them)' if self._path else ''}."
            )

    def _write(self, path: str, reason: str) -> None:
        if path in self._known:
            return
        if self._path is not None:
            # Other ranks write the same file, and an image is logged only once.
            torn = self._read()
            if path not in self._known:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with self._path.open("a", encoding="utf-8") as file:
                    file.write("\n" * torn + json.dumps({"path": path, "reason": reason}) + "\n")
        self._known.add(path)

    def _read(self) -> bool:
        """Read the lines that were added since the last call. Return whether the file ends within a line."""
        if self._path is None or not self._path.exists():
            return False
        with self._path.open("rb") as file:
            file.seek(self._offset)
            *whole, rest = file.read().split(b"\n")
        self._offset += sum(len(line) + 1 for line in whole)
        for line in (*whole, rest):
            found = parsed(line, Line)
            if found is not None:
                self._known.add(absolute(found["path"]))
        return bool(rest)
