"""The value range of images with more than 8 bits, measured."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dovetail.data.measured_range import EIGHT_BIT_IMAGES, MeasuredRange, measured_range
from dovetail.data.open import open_source
from dovetail.data.reading.decode import UnreadableError
from tests.data.photos import folder_of


def images_of(low: float, high: float, dtype: type, *, bands: int = 12) -> list[np.ndarray]:
    """Return images with evenly spread values; the bands reach up to `high` in turn."""
    spread = np.linspace(low, high, 64 * 64).reshape(64, 64, 1)
    return [(spread * np.linspace(0.1, 1, bands)).astype(dtype) for _ in range(3)]


@pytest.mark.parametrize(
    ("low", "high", "dtype", "fits"),
    [
        (0, 3000, np.uint16, False),
        (0, 60_000, np.uint16, True),
        (0, 4200, np.uint16, True),
        (-1000, 2000, np.int16, False),
        (0, 70_000, np.int32, False),
        (0, 1, np.float32, True),
        (0, 0.03, np.float64, False),
        (-3, 40, np.float32, False),
    ],
)
def test_percentiles_of_all_bands(low: float, high: float, dtype: type, fits: bool) -> None:
    found = measured_range(open_source(images_of(low, high, dtype)), 12, seed=0)
    assert found is not None
    assert found.fits == fits
    assert found.num_images == 3
    span = high - low
    assert low <= found.low <= low + 0.003 * span + (dtype != np.uint16)
    assert high - 0.003 * span - 1 <= found.high <= high
    assert str(found).startswith(f"Value range: {found.low:g} to {found.high:g}, the percentiles 0.1 and 99.9")


def test_missing_values_do_not_count() -> None:
    image = images_of(0, 3000, np.float32)[0]
    image[:32] = np.nan
    image[0, 0] = np.inf
    found = measured_range(open_source([image, np.full_like(image, np.nan)]), 12, seed=0)
    assert found is not None
    assert (found.low > 0, found.high < 3000, found.num_images) == (True, True, 1)


def test_images_of_8_bits_have_none(tmp_path: Path) -> None:
    reads = []

    class Plain(list[np.ndarray]):
        def __getitem__(self, index: int) -> np.ndarray:  # type: ignore[override]
            reads.append(index)
            return super().__getitem__(index)

    assert measured_range(open_source(folder_of(tmp_path, 2)), 3, seed=0) is None
    assert measured_range(open_source(Plain([np.full((4, 4, 3), 9, np.uint8)] * 20)), 3, seed=0) is None
    assert measured_range(open_source([np.full((4, 4, 3), 255, np.int64)] * 2), 3, seed=0) is None
    assert measured_range(open_source([np.zeros((4, 4, 5), np.uint16)]), 3, seed=0) is None
    mixed = [np.full((4, 4), 9, np.uint8)] * (EIGHT_BIT_IMAGES // 2) + [np.arange(16, dtype=np.uint16).reshape(4, 4)]
    assert isinstance(measured_range(open_source(mixed), 1, seed=0), MeasuredRange)
    assert not reads  # another process read them
    constant = measured_range(open_source([np.full((4, 4), 7, np.uint16)]), 1, seed=0)
    assert constant is not None
    assert constant.range == (7, 8)


def test_a_decoder_that_crashes_ends_no_run() -> None:
    class Crashing(list[int]):
        def __getitem__(self, index: int) -> Image.Image:  # type: ignore[override]
            ctypes.string_at(0)
            raise AssertionError

    with pytest.raises(UnreadableError, match="died"):
        measured_range(open_source(Crashing([1])), 3, seed=0)
