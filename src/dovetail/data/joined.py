"""Several folders, archives or lists of images as one source."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from dovetail.data.reading.decode import LazyImage
from dovetail.data.sources import ImageSource


class JoinedSource(ImageSource):
    """The images of several sources, one source after another. They are shuffled together.

    Attributes:
        parts: The sources.
    """

    def __init__(self, parts: Sequence[ImageSource]) -> None:
        self.parts = tuple(parts)
        self.left_out = "\n".join(part.left_out for part in parts if part.left_out)
        self._ends = list(accumulate(part.num_images for part in parts))

    @property
    def num_images(self) -> int:
        return self._ends[-1]

    def name(self, index: int) -> str:
        part, within = self._place(index)
        return part.name(within)

    def open(self, index: int, channels: int) -> LazyImage:
        part, within = self._place(index)
        return part.open(within, channels)

    def fetch(self, index: int) -> None:
        part, within = self._place(index)
        part.fetch(within)

    def encoded(self, index: int) -> bytes:
        part, within = self._place(index)
        return part.encoded(within)

    def _place(self, index: int) -> tuple[ImageSource, int]:
        """Return the source of an image, and the image's index in it."""
        number = bisect_right(self._ends, index)
        return self.parts[number], index - (self._ends[number - 1] if number else 0)
