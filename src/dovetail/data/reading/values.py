"""Which values of an image are black and which are white, where its channels have more than 8 bits.

16-bit values are divided by 257 unless a range is given, so 12 bits in a 16-bit file come out nearly black, in 17
levels. `values_within` gives the range of all images that this process reads: (0, 4095) for 12 bits. What lies beyond
is clipped.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dovetail.errors import OptionsError, counted

Range = tuple[float, float]

LOOKED_AT = 16  # images that tell about the others
NARROW = 16  # a range of which only this part is used is told
_DEEP_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".npy", ".jp2", ".pgm"})
_PNG = b"\x89PNG\r\n\x1a\n"


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


def told_of_values(paths: Iterable[str | Path], given: Range | None) -> str:
    """Return a sentence where images of more than 8 bits use little of their range, or more than the given one.

    Args:
        paths: Of images; evenly spaced ones with suffixes of deep formats are looked at.
        given: What `--value-range` says.
    """
    deep = [path for path in paths if Path(path).suffix.lower() in _DEEP_SUFFIXES]
    chosen = deep[:: max(len(deep) // LOOKED_AT, 1)][:LOOKED_AT]
    peaks = [peak for peak in map(peak_in_file, chosen) if peak is not None]
    if not peaks:
        return ""
    highest, whole = max(peak for peak, _ in peaks), max(whole for _, whole in peaks)
    if given is not None:
        beyond = sum(peak > given[1] for peak, _ in peaks)
        words = f"{beyond} of {counted(len(peaks), 'image')} looked at hold values beyond --value-range"
        return f"{words} {given[0]:g} {given[1]:g} (up to {highest:g}), which are clipped." if beyond else ""
    if highest * NARROW >= whole or highest <= 0:
        return ""
    fitting = 2 ** int(np.ceil(np.log2(highest + 1))) - 1 if whole > 1 else highest
    return (
        f"Of {counted(len(peaks), 'image')} looked at none holds a value above {highest:g}, under 1/{NARROW} of "
        f"{whole:g}, the format's white: they come out nearly black. Say what is white: --value-range 0 {fitting:g}."
    )


def peak_in_file(path: str | Path) -> tuple[float, float] | None:
    """Return an image's largest value and the one that is white by its format; None for 8 bits and unreadable files."""
    try:
        return peak_in(Path(path).read_bytes())
    except Exception:  # decoders raise almost anything, and who reads the image for its pixels is told
        return None


def peak_in(content: bytes) -> tuple[float, float] | None:
    """Return the largest value in the content of a file and its format's white; None for 8 bits."""
    if content.startswith(b"\x93NUMPY"):
        return peak_of(np.load(io.BytesIO(content), allow_pickle=False))
    if content.startswith(_PNG) and not is_deep_png(content):
        return None
    with Image.open(io.BytesIO(content)) as image:
        if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
            return peak_of(np.asarray(image))
        tags: Any = getattr(image, "tag_v2", {})
        deep_colour = is_deep_png(content) or max(tags.get(258, (8,))) == 16
        # Pillow gives the upper 8 of 16 bits of colours.
        return (float(np.asarray(image).max()) * 256 + 255, 65535.0) if deep_colour else None


def is_deep_png(content: bytes) -> bool:
    """Return whether the content of a file is a PNG of 16 bits a channel."""
    return content.startswith(_PNG) and len(content) > 25 and content[24] == 16


def peak_of(array: np.ndarray) -> tuple[float, float] | None:
    """Return the largest value of an array and what is white; None for 8 bits."""
    if array.dtype.kind == "f":
        return float(array.max()), 1.0
    peak = float(array.max())
    return (peak, 65535.0) if array.dtype.itemsize == 2 or (array.dtype.itemsize > 2 and peak > 255) else None
