"""The range of values that is black to white."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import imagecodecs
import numpy as np
import pytest
import torch
from PIL import Image

from dovetail.data.reading import values
from dovetail.data.reading.decode import UnreadableError, from_array, from_image, open_bytes
from dovetail.data.reading.peaks import told_of_values
from dovetail.data.reading.values import all_levels, values_within
from dovetail.errors import DovetailError
from tests.data.photos import encoded
from tests.data.reading.test_decode import EXPECTED, IMAGE, RGB, read
from tests.data.reading.test_tiff import tiff_of

TWELVE = RGB.astype(np.uint16) * 16 + RGB // 16  # 12 bits, which 0 to 4095 maps back to RGB


@pytest.mark.parametrize("kind", ["grey png", "grey tiff", "colour tiff", "bands", "array", "pillow"])
def test_a_range_of_values_is_black_to_white(kind: str) -> None:
    grey = Image.fromarray(np.ascontiguousarray(TWELVE[:, :, 0]))
    file = io.BytesIO()
    np.save(file, TWELVE)
    bands = np.concatenate([TWELVE, TWELVE[:, :, :1]], axis=2)
    content, channels = {
        "grey png": (encoded(grey, "PNG"), 1),
        "grey tiff": (encoded(grey, "TIFF"), 1),
        "colour tiff": (tiff_of(TWELVE, photometric="rgb"), 3),
        "bands": (tiff_of(bands, photometric="rgb", extrasamples=["unspecified"]), 4),
        "array": (file.getvalue(), 3),
        "pillow": (b"", 1),
    }[kind]
    expected = EXPECTED[[0, 1, 2, 0]][:channels]
    plain = from_image(grey, 1).decode(1) if kind == "pillow" else read(content, channels)
    assert int(plain.max()) <= 16
    with values_within([0, 4095]):
        found = from_image(grey, 1).decode(1) if kind == "pillow" else read(content, channels)
        assert found.equal(expected)
        assert read(encoded(IMAGE, "PNG")).equal(EXPECTED)  # 8 bits are what they are
    with values_within([0, 255]):
        clipped = from_image(grey, 1).decode(1) if kind == "pillow" else read(content, channels)
        assert int(clipped.max()) == 255
    assert values.value_range() is None


@pytest.mark.parametrize("given", [[1], [4095, 0], [0, float("nan")], [1, 2, 3], ["percentile"], "percentile"])
def test_ranges_that_are_none(given: list[float] | list[str] | str) -> None:
    with pytest.raises(DovetailError, match="--value-range expects two numbers"), values_within(given):
        pass


def test_deep_images_that_use_little_of_their_range_are_told(tmp_path: Path) -> None:
    for number in range(3):
        Image.fromarray(np.ascontiguousarray(TWELVE[:, :, number])).save(tmp_path / f"{number}.png")
        IMAGE.save(tmp_path / f"{number}.tif")
    paths = sorted(tmp_path.iterdir())
    told = told_of_values(paths, None)
    assert "The largest value in 3 images inspected is 3" in told
    assert "--value-range 0 4095" in told
    assert told_of_values(paths, (0, 4095)) == ""
    assert "3 of 3 images inspected exceed --value-range 0 99 (up to 3" in told_of_values(paths, (0, 99))
    (tmp_path / "white.tif").write_bytes(tiff_of(TWELVE * 16, photometric="rgb"))
    assert told_of_values([*paths, tmp_path / "white.tif"], None) == ""
    deep = tmp_path / "deep.tif"
    deep.write_bytes(tiff_of(TWELVE, photometric="rgb"))
    assert "--value-range 0 4095" in told_of_values([deep], None)


@pytest.mark.parametrize("dtype", [np.uint16, np.int32, np.float32])
def test_views_keep_all_levels_within_a_range(dtype: type) -> None:
    bands = np.arange(3000, dtype=dtype).reshape(10, 25, 12)
    with values_within([0, 3000]):
        with all_levels():
            kept = from_array(bands, 12).decode(1)
        assert from_array(bands, 12).decode(1).dtype == torch.uint8
    assert kept.dtype == torch.float32
    assert len(kept.unique()) == 3000
    torch.testing.assert_close(kept, torch.from_numpy(bands.astype(np.float32)).permute(2, 0, 1) * 255 / 3000)
    with all_levels():  # without a range 8 bits come out, as ever
        assert from_array(bands.astype(np.uint16), 12).decode(1).dtype == torch.uint8


@pytest.mark.parametrize("given", [1, 3, 4])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_all_levels_have_the_channels_that_bytes_have(given: int, channels: int) -> None:
    bands = np.random.default_rng(0).integers(0, 4096, (6, 7, given), dtype=np.uint16)
    with values_within([0, 4095]):
        plain = from_array(bands, channels).decode(1)
        with all_levels():
            kept = from_array(bands, channels).decode(1)
    assert kept.dtype == torch.float32
    torch.testing.assert_close(kept, plain.float(), atol=2, rtol=0)


def test_grey_files_of_16_bits_keep_all_levels() -> None:
    grey = Image.fromarray(np.arange(0, 4000, 8, dtype=np.uint16).reshape(20, 25))
    with values_within([0, 4095]), all_levels():
        for name in ("PNG", "TIFF"):
            kept = open_bytes(encoded(grey, name), 3).decode(1)
            assert kept.shape == (3, 20, 25)
            assert len(kept.unique()) == 500


@pytest.mark.parametrize("kind", ["RGB", "RGBA", "LA"])
def test_colour_pngs_of_16_bits_keep_all_levels(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bands = len(kind)
    array = np.arange(20 * 25 * bands, dtype=np.uint16).reshape(20, 25, bands) * 2
    content = imagecodecs.png_encode(array)
    with values_within([0, 65535]), all_levels():
        kept = open_bytes(content, 3 if kind == "RGB" else 4).decode(1)
        expected = torch.from_numpy(array[:, :, [0, 0, 0, 1] if kind == "LA" else slice(None)].astype(np.float32))
        torch.testing.assert_close(kept, expected.permute(2, 0, 1) / 257)
        monkeypatch.setattr("dovetail.data.reading.decode.MAX_PIXELS", 60)
        with pytest.raises(UnreadableError, match="exceed the limit"):
            open_bytes(content, 3)
        monkeypatch.setitem(sys.modules, "imagecodecs", None)
        with pytest.raises(UnreadableError, match="need the package imagecodecs"):
            open_bytes(content, 3)


def test_missing_values_are_black(tmp_path: Path) -> None:
    array = np.array([[np.nan, 100, 200], [300, -np.inf, np.inf]], dtype=np.float32)
    with values_within([100, 300]):
        assert from_array(array, 1).decode(1).flatten().tolist() == [0, 0, 128, 255, 0, 255]
        with pytest.raises(UnreadableError, match="all of its values are NaN"):
            from_array(np.full((2, 2), np.nan), 1)
    with pytest.raises(UnreadableError, match="specify --value-range"):
        from_array(array, 1)


@pytest.mark.parametrize("dtype", [np.uint16, np.int16, np.float32, np.float64])
@pytest.mark.parametrize("bands", [1, 5])
def test_the_missing_value_of_a_geotiff_is_black(bands: int, dtype: type) -> None:
    array = np.arange(60 * bands).reshape(6, 10, bands).astype(dtype)
    array[2, 3] = missing = 30_000
    tags = [(42113, "s", 0, str(missing))]
    layout = {"photometric": "minisblack", "planarconfig": "contig"} if bands > 1 else {"photometric": "minisblack"}
    content = tiff_of(array if bands > 1 else array[:, :, 0], extratags=tags, **layout)
    with values_within([0, 300]), all_levels():
        kept = open_bytes(content, bands).decode(1)
    expected = np.where(array == missing, 0, array).astype(np.float32) / 300 * 255
    torch.testing.assert_close(kept, torch.from_numpy(expected).permute(2, 0, 1))


def test_a_range_that_is_narrow_for_its_type_keeps_its_levels() -> None:
    array = (10_000_000 + np.arange(500)).astype(np.int32).reshape(20, 25)
    with values_within([10_000_000, 10_000_499]), all_levels():
        assert len(from_array(array, 1).decode(1).unique()) == 500


def test_no_pipe_is_waited_for_to_look_at_its_values(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    assert told_of_values([tmp_path / "x.png"], None) == ""
