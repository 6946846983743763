"""Checks before a run, on a few images, how much of their value range images of more than 8 bits use."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dovetail.data.reading.decode import read_file
from dovetail.data.reading.values import PNG, Range, is_deep_png
from dovetail.errors import counted

LOOKED_AT = 16  # number of images to inspect
NARROW = 16  # warn if images use less than 1/NARROW of their format's range
MOST_PIXELS = 64_000_000
_DEEP_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".npy", ".jp2", ".pgm"})


def told_of_values(paths: Iterable[str | Path], given: Range | None) -> str:
    """Return a warning if images of more than 8 bits use little of their range, or exceed the specified one.

    Args:
        paths: Paths of images. A few evenly spaced ones with suffixes of deep formats are inspected.
        given: Value of `--value-range`.
    """
    deep = [path for path in paths if Path(path).suffix.lower() in _DEEP_SUFFIXES]
    chosen = deep[:: max(len(deep) // LOOKED_AT, 1)][:LOOKED_AT]
    peaks = [peak for peak in map(peak_in_file, chosen) if peak is not None]
    if not peaks:
        return ""
    highest, whole = max(peak for peak, _ in peaks), max(whole for _, whole in peaks)
    if given is not None:
        beyond = sum(peak > given[1] for peak, _ in peaks)
        words = f"{beyond} of {counted(len(peaks), 'image')} inspected exceed --value-range"
        return f"{words} {given[0]:g} {given[1]:g} (up to {highest:g}); these values are clipped." if beyond else ""
    if highest * NARROW >= whole or highest <= 0:
        return ""
    fitting = 2 ** int(np.ceil(np.log2(highest + 1))) - 1 if whole > 1 else highest
    return (
        f"The largest value in {counted(len(peaks), 'image')} inspected is {highest:g}, less than 1/{NARROW} of the "
        f"format's white ({whole:g}), so the images come out nearly black. Specify the range: "
        f"--value-range 0 {fitting:g}."
    )


def peak_in_file(path: str | Path) -> tuple[float, float] | None:
    """Return the largest value in an image file and its format's white, or None for 8 bits and unreadable files."""
    try:
        return peak_in(read_file(path))
    except Exception:  # decoders raise almost anything; reading the pixels reports it
        return None


def peak_in(content: bytes) -> tuple[float, float] | None:
    """Return the largest value in an encoded image and its format's white, or None for 8 bits."""
    if content.startswith(b"\x93NUMPY"):
        return peak_of(np.load(io.BytesIO(content), allow_pickle=False))
    if content.startswith(PNG) and not is_deep_png(content):
        return None
    with Image.open(io.BytesIO(content)) as image:
        if image.width * image.height > MOST_PIXELS:
            return None
        if image.mode in ("I;16", "I;16B", "I;16L", "I", "F"):
            return peak_of(np.asarray(image))
        tags: Any = getattr(image, "tag_v2", {})
        deep_colour = is_deep_png(content) or max(tags.get(258, (8,))) == 16
        # Pillow gives the upper 8 of 16 bits of colours.
        return (float(np.asarray(image).max()) * 256 + 255, 65535.0) if deep_colour else None


def peak_of(array: np.ndarray) -> tuple[float, float] | None:
    """Return the largest value of an array and the value of white, or None for 8 bits."""
    if array.dtype.kind == "f":
        return float(array.max()), 1.0
    peak = float(array.max())
    return (peak, 65535.0) if array.dtype.itemsize == 2 or (array.dtype.itemsize > 2 and peak > 255) else None
