"""Which values of an image are black and which are white, where its channels have more than 8 bits.

16-bit values are divided by 257 unless a range is given, so 12 bits in a 16-bit file come out nearly black, in 17
levels. `values_within` gives the range of all images that this process reads: (0, 4095) for 12 bits. What lies beyond
is clipped.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from dovetail.errors import OptionsError

Range = tuple[float, float]

PNG = b"\x89PNG\r\n\x1a\n"


class _Values:
    """The range of this process; a class so that nothing outside this module assigns it."""

    given: Range | None = None


class _Levels(threading.local):
    """Whether this thread keeps all levels of images with a given range."""

    kept = False


_levels = _Levels()


def levels_are_kept() -> bool:
    """Whether values within a given range come out as float32 in [0, 255] with all their levels, and not as uint8."""
    return _levels.kept and _Values.given is not None


@contextmanager
def all_levels() -> Iterator[None]:
    """Keep all levels of images that this thread reads within, where a range is given."""
    before, _levels.kept = _levels.kept, True
    try:
        yield
    finally:
        _levels.kept = before


def value_range() -> Range | None:
    """Return the range that is read as black to white; None where each format's own is."""
    return _Values.given


def use_values(given: Range | None) -> None:
    """Read with that range from now on: for a loading process, which starts for one purpose."""
    _Values.given = given


@contextmanager
def values_within(given: Sequence[float] | None) -> Iterator[None]:
    """Read images of more than 8 bits with `given` as black and white within; None or nothing for the formats' own."""
    before, _Values.given = _Values.given, as_range(given)
    try:
        yield
    finally:
        _Values.given = before


def as_range(given: Sequence[float] | None) -> Range | None:
    """Return two numbers as a range, nothing as None; raise `OptionsError` for anything else."""
    if given is None or len(given) == 0:
        return None
    if len(given) != 2 or not float(given[0]) < float(given[1]) < float("inf"):
        raise OptionsError(f"--value-range is {' '.join(map(str, given))}; give two numbers, black and white: 0 4095.")
    return float(given[0]), float(given[1])


def scaled(array: np.ndarray, given: Range) -> np.ndarray:
    """Return values in 0 to 255, black and white as given, as uint8, or as float32 where `levels_are_kept`.

    NaN stays an error of the caller's.
    """
    low, high = given
    shares = (array.astype(np.float32) - low) / (high - low)
    spread: np.ndarray = shares.clip(0, 1) * np.float32(255)
    return spread if levels_are_kept() else spread.round().astype(np.uint8)


def is_deep_png(content: bytes) -> bool:
    """Return whether the content of a file is a PNG of 16 bits a channel."""
    return content.startswith(PNG) and len(content) > 25 and content[24] == 16
