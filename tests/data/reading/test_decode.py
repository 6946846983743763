from __future__ import annotations

import io
import multiprocessing
import os
import struct
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image
from torch import Tensor

from dovetail.data.reading import values
from dovetail.data.reading.decode import (
    MAX_PIXELS,
    UnreadableError,
    from_array,
    from_image,
    looks_like_image,
    open_bytes,
    open_file,
    opened,
)
from dovetail.data.reading.values import told_of_values, values_within
from dovetail.errors import DovetailError
from tests.data.photos import encoded, exif, smooth

RGB = smooth()
IMAGE = Image.fromarray(RGB)
EXPECTED = torch.from_numpy(RGB).permute(2, 0, 1)


def read(content: bytes, channels: int = 3, shrink: int = 1) -> Tensor:
    photograph = open_bytes(content, channels)
    pixels = photograph.decode(shrink)
    assert pixels.dtype == torch.uint8
    assert pixels.shape[0] == channels
    if shrink == 1:
        assert pixels.shape[1:] == (photograph.height_px, photograph.width_px)
    return pixels


def close(ours: Tensor, expected: Tensor, levels: float) -> bool:
    return ours.shape == expected.shape and (ours.float() - expected.float()).abs().mean().item() <= levels


@pytest.mark.parametrize(
    ("file_format", "options", "levels"),
    [
        ("JPEG", {"quality": 95}, 2),
        ("JPEG", {"quality": 95, "progressive": True}, 2),
        ("PNG", {}, 0),
        ("WEBP", {"lossless": True}, 0),
        ("TIFF", {}, 0),
        ("TIFF", {"compression": "tiff_lzw"}, 0),
        ("BMP", {}, 0),
        ("GIF", {}, 12),
    ],
)
def test_formats_are_told_by_content(file_format: str, options: dict[str, object], levels: float) -> None:
    content = encoded(IMAGE, file_format, **options)
    assert looks_like_image(content[:16])
    assert close(read(content), EXPECTED, levels)


def test_text_is_no_image() -> None:
    assert not looks_like_image(b"once upon a time")
    with pytest.raises(UnreadableError, match="no image"):
        open_bytes(b"once upon a time", 3)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_sixteen_bits(file_format: str) -> None:
    deep = RGB[:, :, 0].astype(np.uint16) * 257
    content = encoded(Image.fromarray(deep), file_format)
    assert read(content, 1).equal(EXPECTED[:1])
    assert read(content, 3).equal(EXPECTED[:1].expand(3, -1, -1))


@pytest.mark.parametrize("file_format", ["JPEG", "TIFF"])
def test_cmyk(file_format: str) -> None:
    assert close(read(encoded(IMAGE.convert("CMYK"), file_format)), EXPECTED, 3)
    assert close(read(encoded(IMAGE.convert("CMYK"), file_format), 4)[:3], EXPECTED, 3)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_grey(file_format: str) -> None:
    content = encoded(IMAGE.convert("L"), file_format)
    expected = torch.from_numpy(np.asarray(IMAGE.convert("L")).copy())[None]
    assert close(read(content, 1), expected, 2)
    assert close(read(content, 3), expected.expand(3, -1, -1), 2)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_colour_as_one_channel(file_format: str) -> None:
    expected = torch.from_numpy(np.asarray(IMAGE.convert("L")).copy())[None]
    assert close(read(encoded(IMAGE, file_format), 1), expected, 2)


def test_transparency_lies_over_white() -> None:
    alpha = np.zeros(RGB.shape[:2], np.uint8)
    alpha[:, 30:] = 255
    content = encoded(Image.fromarray(np.dstack([RGB, alpha])), "PNG")
    pixels = read(content)
    assert pixels[:, :, :30].eq(255).all()
    assert pixels[:, :, 30:].equal(EXPECTED[:, :, 30:])
    assert read(content, 4).equal(torch.from_numpy(np.dstack([RGB, alpha])).permute(2, 0, 1))


def test_opaque_images_get_an_opaque_fourth_channel() -> None:
    pixels = read(encoded(IMAGE, "PNG"), 4)
    assert pixels[:3].equal(EXPECTED)
    assert pixels[3].eq(255).all()


def test_palette_with_and_without_transparency() -> None:
    palette = IMAGE.quantize(16)
    expected = torch.from_numpy(np.asarray(palette.convert("RGB")).copy()).permute(2, 0, 1)
    assert read(encoded(palette, "PNG")).equal(expected)
    index = palette.getpixel((0, 0))
    pixels = read(encoded(palette, "PNG", transparency=index))
    assert pixels[:, 0, 0].eq(255).all()
    # The palette has no colour for half of the grey values, so luma comes from its colours.
    assert close(
        read(encoded(palette, "PNG"), 1), torch.from_numpy(np.array(palette.convert("RGB").convert("L")))[None], 0.5
    )


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_rotation_is_applied(orientation: int, file_format: str) -> None:
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Pillow's transpositions that lay the picture down
    stored = IMAGE if orientation == 1 else IMAGE.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = read(encoded(stored, file_format, exif=exif))
    assert close(pixels, EXPECTED, 6), pixels.shape


@pytest.mark.parametrize("orientation", [(3, 1, b"\x09\0\0\0"), (2, 2, b"6\0\0\0"), (7, 1, b"\x06\0\0\0")])
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_orientations_that_make_no_sense_turn_nothing(orientation: tuple[int, int, bytes], file_format: str) -> None:
    content = encoded(IMAGE, file_format, exif=exif((0x0112, *orientation)))
    assert close(read(content), EXPECTED, 6)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
def test_odd_tags_cost_no_photograph(file_format: str) -> None:
    """A width that is text beside a good orientation, and tags that are cut off."""
    odd = encoded(IMAGE, file_format, exif=exif((0x0100, 2, 4, b"abc\0"), (0x0112, 3, 1, b"\x03\0\0\0")))
    assert close(read(odd), EXPECTED.flip(1, 2), 6)
    assert close(read(encoded(IMAGE, file_format, exif=b"Exif\0\0II*\0")), EXPECTED, 6)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
def test_photographs_are_left_as_they_lie_where_asked(file_format: str) -> None:
    content = encoded(IMAGE, file_format, exif=exif((0x0112, 3, 1, b"\x06\0\0\0")))
    photograph = open_bytes(content, 3, upright=False)
    assert (photograph.width_px, photograph.height_px) == IMAGE.size
    assert close(photograph.decode(1), EXPECTED, 6)
    assert open_bytes(content, 3).decode(1).shape == (3, 60, 40)


def test_first_frame_of_an_animation() -> None:
    black = Image.new("RGB", IMAGE.size)
    for file_format in ("GIF", "WEBP", "PNG"):
        content = encoded(IMAGE, file_format, save_all=True, append_images=[black])
        assert close(read(content), EXPECTED, 12), file_format


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF"])
def test_one_pixel(file_format: str) -> None:
    assert read(encoded(Image.new("RGB", (1, 1), (200, 200, 200)), file_format)).shape == (3, 1, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_shrunk_jpeg_is_smaller_and_shows_the_same(channels: int) -> None:
    content = encoded(Image.fromarray(smooth(400, 600)), "JPEG", quality=95)
    small = read(content, channels, shrink=4)
    assert small.shape == (channels, 100, 150)
    full = torch.nn.functional.interpolate(read(content, channels)[None].float(), size=(100, 150), mode="area")[0]
    assert close(small, full, 2)


def test_hundred_megapixels() -> None:
    jpeg = encoded(Image.new("L", (10_000, 10_000), 120), "JPEG", quality=50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        photograph = open_bytes(jpeg, 3)
        pixels = photograph.decode(8)
    assert (photograph.width_px, photograph.height_px) == (10_000, 10_000)
    assert pixels.shape == (3, 1250, 1250)
    png = encoded(Image.new("L", (10_000, 10_000), 99), "PNG", compress_level=1)
    assert open_bytes(png, 1).decode(1)[0, ::999, ::999].eq(99).all()


def test_bombs_are_refused_before_they_are_decoded() -> None:
    side = int(MAX_PIXELS**0.5) + 1
    header = encoded(Image.new("1", (8, 8)), "PNG")
    # A PNG's width and height lie at fixed places; the checksum of its header is made anew.
    chunk = b"IHDR" + struct.pack(">II", side, side) + header[24:29]
    bomb = header[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + header[33:]
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.raises(UnreadableError, match="limit of 300 million"):
        open_bytes(bomb, 3)
    assert limit == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_truncated_files_are_unreadable(file_format: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    content = encoded(Image.fromarray(noise), file_format)
    with pytest.raises(UnreadableError):
        open_bytes(content[: int(len(content) * share)], 3).decode(1)


def test_stray_bytes_after_a_jpeg_do_no_harm() -> None:
    assert close(read(encoded(IMAGE, "JPEG", quality=95) + b"stray"), EXPECTED, 2)


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(UnreadableError, match="No such file"):
        open_file(tmp_path / "gone.jpg", 3)
    (tmp_path / "empty.jpg").touch()
    with pytest.raises(UnreadableError, match="empty"):
        open_file(tmp_path / "empty.jpg", 3)


@pytest.mark.parametrize("channels", [2, 4, 7])
def test_arrays_with_other_channel_counts(tmp_path: Path, channels: int) -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 6, channels), dtype=np.uint8)
    np.save(tmp_path / "bands.npy", array)
    assert open_file(tmp_path / "bands.npy", channels).decode(1).equal(torch.from_numpy(array).permute(2, 0, 1))
    with pytest.raises(UnreadableError, match="channels"):
        open_file(tmp_path / "bands.npy", 5)


def test_arrays_of_other_types() -> None:
    for array in (RGB / np.float32(255), RGB.astype(np.uint16) * 257, RGB.astype(np.int64)):
        assert from_array(array, 3).decode(1).equal(EXPECTED)
    assert from_array(RGB[:, :, 0] > 100, 1).decode(1).unique().tolist() == [0, 255]
    for wrong in (RGB * 1.0, RGB.astype(np.float32) * np.nan, RGB.astype(int) - 99, RGB.astype(str), RGB[None]):
        with pytest.raises(UnreadableError):
            from_array(wrong, 3)


def test_arrays_that_carry_code_are_not_run(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UnreadableError, match="allow_pickle"):
        open_file(tmp_path / "objects.npy", 3)


def test_pages_of_a_tiff_are_channels() -> None:
    bands = [Image.fromarray(RGB[:, :, band % 3]) for band in range(5)]
    content = encoded(bands[0], "TIFF", save_all=True, append_images=bands[1:])
    assert read(content, 5).equal(EXPECTED[[0, 1, 2, 0, 1]])
    with pytest.raises(UnreadableError, match="5 pages of one channel where 6"):
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
    with pytest.raises(UnreadableError, match=f"it has {channels} channels where 6 are needed"):
        open_bytes(content, 6)
    if options["photometric"] == "rgb" and "planarconfig" not in options:
        assert read(content, 3).permute(1, 2, 0).numpy().tolist() == bands[:, :, :3].tolist()
    elif options["photometric"] == "minisblack":
        with pytest.raises(UnreadableError, match=f"it has {channels} channels where 3 are needed"):
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
        with pytest.raises(UnreadableError, match="it has 5 pages of one channel where 4 are needed"):
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
    with pytest.raises(UnreadableError, match="7 x 9 pixels are more than the limit of 60"):
        open_bytes(tiff_of(BANDS, photometric="minisblack", planarconfig="contig"), 5)


def chunk(kind: bytes, data: bytes, *, damaged: bool = False) -> bytes:
    """Return a PNG's chunk."""
    checksum = zlib.crc32(kind + data) ^ damaged
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)


BAD_REMARKS = {
    "huge profile": chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(3 << 20))),
    "profile that is none": chunk(b"iCCP", b"icc\0\0" + b"nonsense"),
    "damaged text": chunk(b"tEXt", b"Comment\0words", damaged=True),
    "damaged time": chunk(b"tIME", bytes(7), damaged=True),
    "huge text": chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3 << 20))),
    "huge international text": chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(3 << 20))),
}


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize("remark", BAD_REMARKS)
def test_remarks_in_a_png_cost_no_image(remark: str, place: str) -> None:
    content = encoded(IMAGE, "PNG")
    at = 33 if place == "before" else len(content) - 12  # after the header, or after the pixels
    assert read(content[:at] + BAD_REMARKS[remark] + content[at:]).equal(EXPECTED)


def test_good_remarks_and_pixels_of_a_png_are_kept() -> None:
    tags = Image.Exif()
    tags[0x0112] = 6
    content = encoded(IMAGE, "PNG", exif=tags)
    content = content[:33] + BAD_REMARKS["damaged text"] + content[33:]
    assert read(content).equal(EXPECTED.rot90(-1, (1, 2)))
    damaged = bytearray(encoded(IMAGE, "PNG"))
    damaged[60] ^= 255
    with pytest.raises(UnreadableError):
        read(bytes(damaged))


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


@pytest.mark.parametrize("given", [[1], [4095, 0], [0, float("nan")], [1, 2, 3]])
def test_ranges_that_are_none(given: list[float]) -> None:
    with pytest.raises(DovetailError, match="give two numbers, black and white: 0 4095"), values_within(given):
        pass


def test_deep_images_that_use_little_of_their_range_are_told(tmp_path: Path) -> None:
    for number in range(3):
        Image.fromarray(np.ascontiguousarray(TWELVE[:, :, number])).save(tmp_path / f"{number}.png")
        IMAGE.save(tmp_path / f"{number}.tif")
    paths = sorted(tmp_path.iterdir())
    told = told_of_values(paths, None)
    assert "Of 3 images looked at none holds a value above 3" in told
    assert "white: --value-range 0 4095" in told
    assert told_of_values(paths, (0, 4095)) == ""
    assert "3 of 3 images looked at hold values beyond --value-range 0 99 (up to 3" in told_of_values(paths, (0, 99))
    (tmp_path / "white.tif").write_bytes(tiff_of(TWELVE * 16, photometric="rgb"))
    assert told_of_values([*paths, tmp_path / "white.tif"], None) == ""
    deep = tmp_path / "deep.tif"
    deep.write_bytes(tiff_of(TWELVE, photometric="rgb"))
    assert "white: --value-range 0 4095" in told_of_values([deep], None)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"])
def test_pillow_images_of_every_colour_mode(mode: str) -> None:
    image = IMAGE.convert(mode)
    if mode not in ("1", "L", "P"):
        assert close(from_image(image, 3).decode(1), EXPECTED, 3)
    for channels in (1, 4):
        assert from_image(image, channels).decode(1).shape == (channels, 40, 60)


@pytest.mark.parametrize("mode", ["I", "F", "I;16", "LA", "PA", "La", "RGBa"])
def test_pillow_images_of_every_other_mode(mode: str) -> None:
    if mode == "F":
        image = Image.fromarray(RGB[:, :, 0] / np.float32(255))
    elif mode in ("I", "I;16"):
        image = IMAGE.convert("L").convert(mode)
    else:
        image = IMAGE.convert("RGBA" if mode == "RGBa" else "LA").convert(mode)
    assert image.mode == mode
    for channels in (1, 3, 4):
        assert from_image(image, channels).decode(1).shape == (channels, 40, 60)


def state() -> tuple[object, ...]:
    """Return what reading must leave as it was: where stderr leads, Pillow's limit, the filters of warnings."""
    return os.fstat(2).st_ino, os.fstat(2).st_rdev, Image.MAX_IMAGE_PIXELS, list(warnings.filters)


def test_readers_that_overlap_leave_everything_as_it_was() -> None:
    content = encoded(IMAGE, "TIFF", compression="tiff_lzw")
    before = state()
    first, second = opened(content), opened(content)
    for reader in (first, second):
        reader.__enter__().load()
    assert Image.MAX_IMAGE_PIXELS is None
    first.__exit__(None, None, None)
    assert Image.MAX_IMAGE_PIXELS is None
    second.__exit__(None, None, None)
    assert state() == before


def test_threads_that_read_leave_everything_as_it_was(capfd: pytest.CaptureFixture[str]) -> None:
    content = bytearray(encoded(IMAGE, "TIFF", compression="tiff_lzw"))
    content[200:400] = bytes(range(200))
    before = state()
    with ThreadPoolExecutor(4) as pool:
        for reading in [pool.submit(open_bytes, bytes(content), 3) for _ in range(100)]:
            assert isinstance(reading.exception(), UnreadableError)
    assert state() == before
    os.write(2, b"still there\n")
    assert capfd.readouterr().err == "still there\n"


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_a_copy_made_amid_a_reading_has_the_limit_back() -> None:
    """It has no threads that could put it back."""
    before, content = state(), encoded(IMAGE, "PNG")

    def check() -> None:
        assert state() == before
        assert read(content).equal(EXPECTED)
        assert state() == before

    copy = multiprocessing.get_context("fork").Process(target=check)
    with opened(content):
        copy.start()
    copy.join()
    assert copy.exitcode == 0
