"""Measures the value range of images with more than 8 bits: which values become black and white.

Shapes: C channels, H x W pixels, N sampled pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from dovetail.data.isolated import run_isolated
from dovetail.data.loader import IMAGE_SECONDS
from dovetail.data.reading.deadline import deadline
from dovetail.data.reading.decode import UnreadableError
from dovetail.data.reading.values import Range, raw_values
from dovetail.data.sources import ImageSource
from dovetail.errors import counted

LOOKED_AT = 64  # images
PIXELS_EACH = 4096
EIGHT_BIT_IMAGES = 4  # after so many images of 8 bits and no other, the rest counts as 8 bits, too
PERCENTILES = (0.1, 99.9)
NARROW = 16  # a range is needed if images use less than 1/NARROW of their format's range
MOST_SECONDS = 120.0
_EIGHT_BIT_SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".bmp", ".gif", ".avif"})


@dataclass(frozen=True)
class MeasuredRange:
    """What the sampled images of more than 8 bits contain.

    Attributes:
        low: The smallest 0.1th percentile of any channel.
        high: The largest 99.9th percentile of any channel.
        num_images: Number of images with more than 8 bits in the sample.
        fits: Whether the images suit the default range of their format (0 to 65535, or 0 to 1 for floats).
    """

    low: float
    high: float
    num_images: int
    fits: bool

    @property
    def range(self) -> Range:
        """The values of black and white."""
        return self.low, self.high

    def __str__(self) -> str:
        return (
            f"Value range: {self.low:g} to {self.high:g}, the percentiles {PERCENTILES[0]:g} and {PERCENTILES[1]:g} of "
            f"{counted(self.num_images, 'image')} with more than 8 bits (--value-range overrides it)."
        )


def measured_range(source: ImageSource, channels: int, *, seed: int) -> MeasuredRange | None:
    """Measure the values of the first images of a run, in another process: a decoder may hang or crash.

    Args:
        source: Image source. Images whose names have a suffix of an 8-bit format are not read.
        channels: Number of channels that images are decoded with.
        seed: Seed of the run, which decides which images come first.

    Returns:
        The range; None if none of the images has more than 8 bits and can be read.

    Raises:
        UnreadableError: Reading took too long, or a decoder crashed.
    """
    first = source.order(seed=seed, epoch=0)[0 : min(LOOKED_AT, source.num_images)].tolist()
    deep = [index for index in first if Path(source.name(index)).suffix.lower() not in _EIGHT_BIT_SUFFIXES]
    if not deep:
        return None
    return run_isolated(partial(_measured, source, channels, deep), seconds=MOST_SECONDS)


def _measured(source: ImageSource, channels: int, indices: list[int]) -> MeasuredRange | None:
    samples: list[np.ndarray] = []
    fits, num_plain = [], 0
    with raw_values():
        for index in indices:
            try:
                source.fetch(index)
                with deadline(IMAGE_SECONDS):
                    pixels = source.open(index, channels).decode(1).numpy()
            except (UnreadableError, MemoryError):
                continue
            if is_eight_bits(pixels):
                num_plain += 1
                if num_plain >= EIGHT_BIT_IMAGES and not samples:
                    return None
                continue
            fits.append(white_of(pixels))
            flat = pixels.reshape(len(pixels), -1)
            samples.append(flat[:, :: max(flat.shape[1] // PIXELS_EACH, 1)].astype(np.float64))
    if not samples or len({len(sample) for sample in samples}) > 1:
        return None
    pooled = np.concatenate(samples, axis=1)  # [C, N]
    pooled = np.where(np.isfinite(pooled), pooled, np.nan)
    pooled = pooled[~np.isnan(pooled).all(axis=1)]
    if not len(pooled):
        return None
    low, high = np.nanpercentile(pooled, PERCENTILES, axis=1)
    black, white = rounded(float(low.min())), rounded(float(high.max()))
    # As with the format's own range, one image that uses it is enough.
    fitting = all(low >= 0 and high <= top for low, high, top in fits) and any(
        high * NARROW >= top for _, high, top in fits
    )
    return MeasuredRange(black, white if white > black else black + 1, len(samples), fitting)


def is_eight_bits(pixels: np.ndarray) -> bool:
    """Return whether values are read as 8 bits: bytes, and wider integers than 16 bits that do not exceed 255."""
    wide = pixels.dtype.kind in "iu" and pixels.dtype.itemsize > 2
    return pixels.dtype == np.uint8 or (wide and int(pixels.min()) >= 0 and int(pixels.max()) <= 255)


def white_of(pixels: np.ndarray) -> tuple[float, float, float]:
    """Return the smallest and the largest value of an image, and the value of white by default."""
    return float(np.nanmin(pixels)), float(np.nanmax(pixels)), 1.0 if pixels.dtype.kind == "f" else 65535.0


def rounded(value: float) -> float:
    """Return the value with 5 significant digits, as it is printed and saved."""
    return float(f"{value:.5g}")
