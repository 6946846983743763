"""The value range of images with more than 8 bits per channel: which value is black and which is white.

By default, 16-bit values are divided by 257, so 12-bit data in a 16-bit file comes out nearly black, with only 17
levels. `values_within` sets the range of all images that this process reads, such as (0, 4095) for 12 bits. Values
outside the range are clipped. NaN marks missing values, which become black.

`raw_values` reads images without a range and without scaling, to measure one (`dovetail.data.measuring`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from dovetail.errors import OptionsError

Range = tuple[float, float]

PERCENTILE = "percentile"  # the value of --value-range that measures the range

PNG = b"\x89PNG\r\n\x1a\n"


class _Values:
    """The range of this process. It is a class so that other modules cannot assign it by accident."""

    given: Range | None = None


class _Levels(threading.local):
    """Whether this thread keeps all levels of images that are read with a value range, and whether it scales them."""

    kept = False
    raw = False


_levels = _Levels()


def levels_are_kept() -> bool:
    """Return whether images are read as float32 in [0, 255] with all their levels, and not as uint8."""
    return _levels.kept and _Values.given is not None


@contextmanager
def all_levels() -> Iterator[None]:
    """Keep all levels of the images that this thread reads in the block, if a value range is set."""
    before, _levels.kept = _levels.kept, True
    try:
        yield
    finally:
        _levels.kept = before


@contextmanager
def raw_values() -> Iterator[None]:
    """Read the values of images as they are in the file in this thread: in their own type and not scaled."""
    before, _levels.raw = _levels.raw, True
    try:
        yield
    finally:
        _levels.raw = before


def values_are_raw() -> bool:
    """Return whether this thread reads values as they are in the file."""
    return _levels.raw


def needs_all_bits() -> bool:
    """Return whether all bits of deep images are needed, for a value range or to measure one."""
    return _levels.raw or _Values.given is not None


def is_percentile(given: Sequence[object] | str | None) -> bool:
    """Return whether a value range is to be measured."""
    return given == PERCENTILE or (given is not None and list(given) == [PERCENTILE])


def value_range() -> Range | None:
    """Return the values of black and white, or None if each format's default applies."""
    return _Values.given


def use_values(given: Range | None) -> None:
    """Set the value range of this process. Meant for workers, which keep one range."""
    _Values.given = given


@contextmanager
def values_within(given: Sequence[float | str] | None) -> Iterator[None]:
    """Read images of more than 8 bits with `given` as black and white in the block. None or () is the default."""
    before, _Values.given = _Values.given, as_range(given)
    try:
        yield
    finally:
        _Values.given = before


def as_range(given: Sequence[float | str] | None) -> Range | None:
    """Return two numbers as a range, and nothing as None. Raise `OptionsError` for anything else."""
    if given is None or len(given) == 0:
        return None
    numbers = [one for one in given if isinstance(one, int | float)]
    if len(given) != 2 or len(numbers) != 2 or not float(numbers[0]) < float(numbers[1]) < float("inf"):
        raise OptionsError(
            f"--value-range expects two numbers, black and white, such as 0 4095; got {' '.join(map(str, given))}."
        )
    return float(numbers[0]), float(numbers[1])


def scaled(array: np.ndarray, given: Range) -> np.ndarray:
    """Scale values from the range `given` to 0 to 255: uint8, or float32 if `levels_are_kept`. NaN becomes 0."""
    low, high = given
    # Of wide integers and of doubles, float32 would round differences within a narrow range away.
    exact = array.dtype.itemsize > 4 or array.dtype in (np.int32, np.uint32)
    values: np.ndarray = array.astype(np.float64 if exact else np.float32)
    shares = ((values - low) / (high - low)).astype(np.float32)
    spread: np.ndarray = np.nan_to_num(shares.clip(0, 1), nan=0.0) * np.float32(255)
    return spread if levels_are_kept() else spread.round().astype(np.uint8)


def is_deep_png(content: bytes) -> bool:
    """Return whether the content of a file is a PNG with 16 bits per channel."""
    return content.startswith(PNG) and len(content) > 25 and content[24] == 16
