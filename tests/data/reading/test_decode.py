from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dovetail.data.reading.decode import (
    MAX_PIXELS,
    UnreadableError,
    from_array,
    from_image,
    open_bytes,
    open_file,
)
from dovetail.data.reading.recognise import looks_like_image
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
    with pytest.raises(UnreadableError, match="not an image"):
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
