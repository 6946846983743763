"""Bands and pages of TIFFs."""

from __future__ import annotations

import io
import sys
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from dovetail.data.reading.decode import UnreadableError, open_bytes
from dovetail.data.reading.values import raw_values, values_within
from tests.data.photos import encoded
from tests.data.reading.test_decode import EXPECTED, IMAGE, RGB, read


def test_pages_of_a_tiff_are_channels() -> None:
    bands = [Image.fromarray(RGB[:, :, band % 3]) for band in range(5)]
    content = encoded(bands[0], "TIFF", save_all=True, append_images=bands[1:])
    assert read(content, 5).equal(EXPECTED[[0, 1, 2, 0, 1]])
    with pytest.raises(UnreadableError, match="expected 6 channels, got 5 pages"):
        open_bytes(content, 6)


BANDS = np.random.default_rng(0).integers(0, 256, (9, 7, 5)).astype(np.uint8)
LAYOUTS: dict[str, dict[str, Any]] = {
    "rgb and a band": {"photometric": "rgb", "extrasamples": ["unspecified"]},
    "grey bands": {"photometric": "minisblack", "planarconfig": "contig"},
    "bands in planes": {"photometric": "minisblack", "planarconfig": "separate"},
    "rgb in planes": {"photometric": "rgb", "planarconfig": "separate", "extrasamples": ["unspecified"]},
    "compressed": {"photometric": "rgb", "extrasamples": ["unspecified"], "compression": "zlib"},
    "tiles": {"photometric": "rgb", "extrasamples": ["unspecified"], "tile": (16, 16)},
    "geographic": {
        "photometric": "rgb",
        "extrasamples": ["unspecified"],
        "extratags": [(33550, "d", 3, (0.5, 0.5, 0.0)), (42113, "s", 0, "-9999")],
    },
}


def tiff_of(array: np.ndarray, **options: Any) -> bytes:
    """Return bands [H, W, C] as a TIFF."""
    file = io.BytesIO()
    planes = options.get("planarconfig") == "separate"
    tifffile.imwrite(file, np.moveaxis(array, 2, 0) if planes else array, **options)
    return file.getvalue()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [4, 5])
def test_every_band_of_a_tiff_is_read(channels: int, layout: str) -> None:
    options = dict(LAYOUTS[layout])
    if "extrasamples" in options:
        options["extrasamples"] = ["unspecified"] * (channels - 3)
    bands = BANDS[:, :, :channels]
    content = tiff_of(bands, **options)
    assert read(content, channels).permute(1, 2, 0).numpy().tolist() == bands.tolist()
    with pytest.raises(UnreadableError, match=f"expected 6 channels, got {channels}"):
        open_bytes(content, 6)
    if options["photometric"] == "rgb" and "planarconfig" not in options:
        assert read(content, 3).permute(1, 2, 0).numpy().tolist() == bands[:, :, :3].tolist()
    elif options["photometric"] == "minisblack":
        with pytest.raises(UnreadableError, match=f"expected 3 channels, got {channels}"):
            open_bytes(content, 3)


def test_bands_of_sixteen_bits_and_compressed_by_lzw() -> None:
    deep = tiff_of(BANDS.astype(np.uint16) * 257, photometric="minisblack", planarconfig="contig")
    assert read(deep, 5).equal(torch.from_numpy(BANDS).permute(2, 0, 1))
    content = encoded(Image.frombytes("RGBX", (7, 9), BANDS[:, :, :4].tobytes()), "TIFF", compression="tiff_lzw")
    assert read(content, 4).permute(1, 2, 0).numpy().tolist() == BANDS[:, :, :4].tolist()


@pytest.mark.parametrize("turn", range(1, 9))
def test_bands_are_turned_as_pillow_turns_colours(turn: int) -> None:
    tags = [(274, "H", 1, turn)]
    rgb = tiff_of(BANDS[:, :, :3], photometric="rgb", extratags=tags)
    banded = tiff_of(BANDS[:, :, :4], photometric="rgb", extrasamples=["unspecified"], extratags=tags)
    assert read(banded, 4)[:3].equal(read(rgb, 3))


@pytest.mark.parametrize("channels", [3, 4])
def test_grey_pages_are_channels_and_no_page_counts_twice(channels: int) -> None:
    pages = [Image.fromarray(np.ascontiguousarray(BANDS[:, :, band])) for band in range(channels)]
    content = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert read(content, channels).permute(1, 2, 0).numpy().tolist() == BANDS[:, :, :channels].tolist()
    if channels == 4:
        content = encoded(pages[0], "TIFF", save_all=True, append_images=[*pages[1:], pages[0]])
        with pytest.raises(UnreadableError, match="expected 4 channels, got 5 pages"):
            open_bytes(content, 4)


def test_alpha_stays_alpha_and_thumbnails_are_no_channels() -> None:
    content = tiff_of(BANDS[:, :, :4], photometric="rgb", extrasamples=["unassalpha"])
    assert read(content, 4).permute(1, 2, 0).numpy().tolist() == BANDS[:, :, :4].tolist()
    page, small = Image.fromarray(BANDS[:, :, 0].copy()), Image.new("L", (3, 3))
    content = encoded(page, "TIFF", save_all=True, append_images=[small] * 3)
    assert read(content, 4)[0].numpy().tolist() == BANDS[:, :, 0].tolist()


def test_values_of_all_pages_are_scaled_alike() -> None:
    pages = [Image.fromarray(np.full((4, 4), value, np.int32)) for value in (200, 300)]
    content = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    assert read(content, 2)[:, 0, 0].tolist() == [1, 1]


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int8, np.uint32, np.float32, np.float64])
@pytest.mark.parametrize("layout", ["contig", "separate", "pages"])
def test_layouts_of_all_types(layout: str, dtype: type) -> None:
    bands = (np.arange(9 * 7 * 12) % 120).reshape(9, 7, 12).astype(dtype)
    if layout == "pages":
        file = io.BytesIO()
        tifffile.imwrite(file, np.moveaxis(bands, 2, 0), photometric="minisblack", metadata=None)
        content = file.getvalue()
    else:
        content = tiff_of(bands, photometric="minisblack", planarconfig=layout, metadata=None)
    with raw_values():
        found = open_bytes(content, 12).decode(1).numpy()
    assert found.dtype == dtype or dtype in (np.uint32, np.float64)  # Pillow reads pages of 32 and 64 bits as 32
    assert np.array_equal(found, np.moveaxis(bands, 2, 0))


def test_deep_colours_leave_other_bands_out() -> None:
    bands = np.arange(9 * 7 * 5, dtype=np.uint16).reshape(9, 7, 5) * 100
    content = tiff_of(bands, photometric="rgb", extrasamples=["unspecified"] * 2)
    with values_within([0, 65535]):
        assert read(content, 3).permute(1, 2, 0).numpy().tolist() == (bands[:, :, :3] / 257).round().tolist()


def test_pages_that_differ_are_no_bands() -> None:
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as pages:
        for dtype in (np.float64, np.int8):
            pages.write(np.zeros((4, 4), dtype), photometric="minisblack", metadata=None)
    with pytest.raises(UnreadableError, match="expected 2 "), raw_values():
        open_bytes(file.getvalue(), 2)


def test_bands_that_grow_out_of_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dovetail.data.reading.decode.SMALL_BYTES", 1000)
    monkeypatch.setattr("dovetail.data.reading.decode.MAX_GROWTH", 2)
    for layout in ("contig", "separate"):
        content = tiff_of(np.zeros((90, 70, 12), np.uint16), photometric="minisblack", planarconfig=layout)
        assert open_bytes(content, 12).width_px == 70
        packed = tiff_of(
            np.zeros((90, 70, 12), np.uint16), photometric="minisblack", planarconfig=layout, compression="zlib"
        )
        with pytest.raises(UnreadableError, match="more than the limit of"):
            open_bytes(packed, 12)


def test_frames_of_a_palette_are_no_channels() -> None:
    frames = [Image.new("P", (4, 4), index) for index in range(5)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    with pytest.raises(UnreadableError):
        open_bytes(content, 5)


def test_bands_without_the_packages_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    content = tiff_of(BANDS, photometric="minisblack", planarconfig="contig")
    monkeypatch.setitem(sys.modules, "tifffile", None)
    with pytest.raises(UnreadableError, match=r"need the package tifffile; install it with `pip install"):
        open_bytes(content, 5)
    assert read(encoded(IMAGE, "TIFF"), 3).equal(EXPECTED)


def test_bombs_of_bands_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dovetail.data.reading.decode.MAX_PIXELS", 60)
    with pytest.raises(UnreadableError, match="7 x 9 pixels exceed the limit of 60"):
        open_bytes(tiff_of(BANDS, photometric="minisblack", planarconfig="contig"), 5)
