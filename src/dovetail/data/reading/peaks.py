"""How much of their range images of more than 8 bits use: told once before a run, for a few of its images."""

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

LOOKED_AT = 16  # images that tell about the others
NARROW = 16  # a range of which only this part is used is told
MOST_PIXELS = 64_000_000
_DEEP_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".npy", ".jp2", ".pgm"})


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
        return peak_in(read_file(path))
    except Exception:  # decoders raise almost anything, and who reads the image for its pixels is told
        return None


def peak_in(content: bytes) -> tuple[float, float] | None:
    """Return the largest value in the content of a file and its format's white; None for 8 bits."""
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
    """Return the largest value of an array and what is white; None for 8 bits."""
    if array.dtype.kind == "f":
        return float(array.max()), 1.0
    peak = float(array.max())
    return (peak, 65535.0) if array.dtype.itemsize == 2 or (array.dtype.itemsize > 2 and peak > 255) else None
