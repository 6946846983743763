"""One image file -> uint8 pixels, whatever the format, and never half of an image.

Formats are told by content: JPEG, PNG, WebP, TIFF, BMP, GIF, PPM and, where Pillow has them, JPEG 2000 and AVIF; arrays
`[H, W, C]` in `.npy` files. What comes out is
always 8 bits a channel, upright (EXIF), and has the channels asked for:

* 1 channel: ITU-R 601 luma of colour images. 3 channels: RGB, grey repeated. 4 channels: RGBA as it stands, opaque
  where an image has no fourth channel. 2 or more than 4 channels: arrays, and TIFFs.
* TIFFs with samples of no stated meaning have as many channels as samples, those with pages of one channel as many as
  pages (`dovetail.data.reading.tiff`).
* Transparency is laid over white unless it is itself a channel. CMYK becomes RGB. Palettes are looked up.
* Of animations the first frame counts. 16-bit values are divided by 257; 32-bit integers likewise where they exceed
  255; floating point is taken as [0, 1]. A range that is given counts instead (`dovetail.data.reading.values`);
  views then keep all levels, as float32 in 0 to 255.

JPEGs go through simplejpeg. Measured (`benchmarks/results/speed_decoding.md`), it is the fastest at every size or as
fast as PyTurboJPEG, which needs a libturbojpeg of the system where simplejpeg brings its own; torchvision.io cannot
decode them smaller, and is deprecated; Pillow takes longer at every size, and is what everything else goes through.
"""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError, features
from torch import Tensor

from dovetail.data.reading import tiff
from dovetail.data.reading.png import without_bad_remarks
from dovetail.data.reading.quiet import quiet
from dovetail.data.reading.values import is_deep_png, levels_are_kept, scaled, value_range

MAX_PIXELS = 300_000_000
MAX_FILE_BYTES = 1 << 30
MAX_GROWTH = 200  # from the file to the pixels in memory; JPEGs and PNGs of images grow less than 50 times
SMALL_BYTES = 128 << 20  # pixels that take no more than this may grow by any factor
# Formats that every Pillow reads, and those that only some builds of it do; no others, as some of them run programs.
_SUFFIXES_OF = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    **({"JPEG2000": (".jp2", ".j2k", ".j2c", ".jpx")} if features.check("jpg_2000") else {}),
    **({"AVIF": (".avif",)} if features.check("avif") else {}),
}
FORMATS = tuple(_SUFFIXES_OF)
# Files with these names are taken without being opened; all others are looked into.
SUFFIXES = frozenset({".npy", *(suffix for suffixes in _SUFFIXES_OF.values() for suffix in suffixes)})
_WORDS = {"WEBP": "WebP", "PPM": "PPM, PGM", "JPEG2000": "JPEG 2000"}
FORMATS_READ = f"{', '.join(_WORDS.get(name, name) for name in FORMATS)} or .npy files"
_NPY_MAGIC = b"\x93NUMPY"
_JPEG2000_MAGIC = (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51") if "JPEG2000" in FORMATS else ()
_MAGIC = (_NPY_MAGIC, *_JPEG2000_MAGIC, b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", *tiff.MAGIC)
DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = frozenset(_UPRIGHT[orientation] for orientation in (5, 6, 7, 8))  # width and height change places


class UnreadableError(Exception):
    """An image that cannot be read; the message is the reason that `skipped.jsonl` gives."""


@dataclass(frozen=True)
class Photograph:
    """An image whose size is known and whose pixels are decoded on demand.

    Attributes:
        width_px: Upright width.
        height_px: Upright height.
        decode: shrink (1, 2, 4 or 8) -> uint8 [C, H, W]. JPEGs come out smaller by up to that divisor, everything
            else in full. Raises `UnreadableError`.
    """

    width_px: int
    height_px: int
    decode: Callable[[int], Tensor]


def looks_like_image(head: bytes) -> bool:
    """Return whether a file that begins with `head` (12 bytes or more) is in one of the formats read here."""
    if head[4:8] == b"ftyp":
        return "AVIF" in FORMATS and head[8:12] in (b"avif", b"avis")
    return head.startswith(_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def open_file(path: str | Path, channels: int) -> Photograph:
    """Return the image in the file at `path` with that many channels; raise `UnreadableError` otherwise."""
    return open_bytes(read_file(path), channels)


def read_file(path: str | Path) -> bytes:
    """Return the bytes of a regular file of limited size; raise `UnreadableError` if it cannot be read.

    Neither a device nor a pipe is waited for, and no more memory is taken than the file's size.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb") as file:  # noqa: PTH123 (a handle that was opened without waiting)
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableError("it is no regular file")
            if status.st_size > MAX_FILE_BYTES:
                raise UnreadableError(f"its {status.st_size:,} bytes are more than the limit of {MAX_FILE_BYTES:,}")
            return file.read(status.st_size)
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from error
    except MemoryError as error:
        raise UnreadableError("there is not enough memory for it") from error


def open_bytes(content: bytes, channels: int, *, upright: bool = True) -> Photograph:
    """Return the image encoded in `content`; raise `UnreadableError` where there is none.

    Args:
        content: All bytes of the file.
        channels: Of the pixels.
        upright: Whether to turn it as its EXIF tag says; TIFFs always are turned.
    """
    if content.startswith(_NPY_MAGIC):
        with _reasons():
            return from_array(np.load(io.BytesIO(content), allow_pickle=False), channels)
    if content.startswith(tiff.MAGIC) and (bands := _bands(content, channels)) is not None:
        return from_array(bands, channels)
    if value_range() is not None and is_deep_png(content) and content[25] != 0:  # Pillow gives the upper 8 bits
        raise UnreadableError("--value-range does not reach PNGs in colour of 16 bits; save them as TIFF or .npy")
    with opened(content) as image:
        if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB") and channels in (1, 3):
            return _jpeg(content, image, channels, upright)
        return from_image(image, channels, upright=upright)


def _bands(content: bytes, channels: int) -> np.ndarray | None:
    """Return the bands [H, W, C] of a TIFF that Pillow would not read whole; None for others."""
    with _reasons(), quiet():
        try:
            return tiff.read_bands(content, channels, most_pixels=MAX_PIXELS)
        except tiff.UnreadableBandsError as error:
            raise UnreadableError(str(error)) from error


@contextmanager
def opened(content: bytes) -> Iterator[Image.Image]:
    """Yield the Pillow image of a file, of a size that may be decoded, for what needs its values as they are.

    Raises:
        UnreadableError: There is none, or whatever is done with it within fails.
    """
    if not content:
        raise UnreadableError("the file is empty")
    with _reasons(), quiet():
        image = Image.open(io.BytesIO(without_bad_remarks(content)), formats=FORMATS)
        _check_size(*image.size)
        _check_growth(image, len(content))
        yield image


def from_image(image: Image.Image, channels: int, *, upright: bool = True) -> Photograph:
    """Return the image in a Pillow image; raise `UnreadableError` if it cannot be loaded. See `open_bytes`."""
    with _reasons(), quiet():
        _check_size(*image.size)
        if channels not in (1, 3, 4):
            pixels = _pages(image, channels)
        else:
            image.load()  # PNGs have their tags where the pixels end
            turn = _turn(image, upright)
            turned = image if turn is None else image.transpose(turn)
            if levels_are_kept() and turned.mode in DEEP_MODES:
                return from_array(np.asarray(turned), channels)
            pixels = np.asarray(_with_channels(turned, channels)).reshape(*turned.size[::-1], channels)
    return _decoded(pixels)


def from_array(array: np.ndarray, channels: int) -> Photograph:
    """Return the image in an array [H, W] or [H, W, C]; raise `UnreadableError` if it is something else."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.size == 0:
        raise UnreadableError(f"an array of shape {list(array.shape)} is no image [height, width, channels]")
    _check_size(array.shape[1], array.shape[0])
    with _reasons():
        pixels = _eight_bits(array)
        given = pixels.shape[2]
        if pixels.dtype != np.uint8:
            pixels = _in_channels(pixels, channels)
        elif given != channels and given in (1, 3, 4) and channels in (1, 3, 4):
            image = Image.fromarray(pixels[:, :, 0] if given == 1 else pixels)
            pixels = np.asarray(_with_channels(image, channels)).reshape(*pixels.shape[:2], channels)
    if pixels.shape[2] != channels:
        raise UnreadableError(f"it has {pixels.shape[2]} channels where {channels} are needed")
    return _decoded(pixels)


def _in_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Return float pixels [H, W, C] in 0 to 255 with the channels that `_with_channels` makes of 1, 3 or 4."""
    given = pixels.shape[2]
    if given == channels or given not in (1, 3, 4) or channels not in (1, 3, 4):
        return pixels
    if given == 4:  # over white
        share = pixels[:, :, 3:] / 255
        pixels = pixels[:, :, :3] * share + 255 * (1 - share)
    if channels == 1:
        return np.asarray(pixels @ np.array(LUMA, dtype=np.float32))[:, :, None]
    colours = np.repeat(pixels, 3, axis=2) if given == 1 else pixels
    if channels == 3:
        return colours
    return np.concatenate([colours, np.full_like(colours[:, :, :1], 255)], axis=2)


def _decoded(pixels: np.ndarray) -> Photograph:
    height, width = pixels.shape[:2]
    # A copy where Pillow or a memory map owns the memory: torch wants to be able to write.
    tensor = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)
    return Photograph(width, height, lambda shrink: tensor)


def _turn(image: Image.Image, upright: bool) -> Image.Transpose | None:
    """Return what turns an image as its EXIF tag says; None where nothing does, or `upright` is off."""
    if not upright or image.format == "TIFF":  # Pillow turns TIFFs by itself when it loads them
        return None
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # damaged tags make Pillow raise almost anything, and do the pixels no harm
        return None
    return _UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _jpeg(content: bytes, image: Image.Image, channels: int, upright: bool) -> Photograph:
    """Return a JPEG that is decoded later, at the size that is needed then."""
    turn = _turn(image, upright)
    width, height = image.size

    def decode(shrink: int) -> Tensor:
        with _reasons():
            try:
                pixels = simplejpeg.decode_jpeg(
                    content,
                    colorspace="RGB" if channels == 3 else "GRAY",
                    min_width=math.ceil(width / shrink) if shrink > 1 else 0,
                    min_height=math.ceil(height / shrink) if shrink > 1 else 0,
                )
            except ValueError:
                # Pillow is more lenient with stray bytes, and as strict with a truncated file.
                with opened(content) as lenient:
                    return from_image(lenient, channels, upright=upright).decode(1)
        if turn is not None:
            turned = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0]).transpose(turn)
            pixels = np.asarray(turned).reshape(*turned.size[::-1], channels)
        return _decoded(pixels).decode(1)

    return Photograph(*((height, width) if turn in _SIDEWAYS else (width, height)), decode)


def _with_channels(image: Image.Image, channels: int) -> Image.Image:
    """Return `image` as L, RGB or RGBA."""
    if image.mode in DEEP_MODES:
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    if image.mode == "La":  # Pillow knows no direct way from it
        image = image.convert("LA")
    transparent = image.has_transparency_data or image.mode == "RGBX"
    if not transparent and image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")
    if channels == 4:
        return image if image.mode in ("RGBA", "RGBX") else image.convert("RGBA")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    mode = "RGB" if channels == 3 else "L"
    return image if image.mode == mode else image.convert(mode)


def _pages(image: Image.Image, channels: int) -> np.ndarray:
    """Return [H, W, channels] of an image with as many bands, or as many pages of one band, as are needed."""
    num_pages = getattr(image, "n_frames", 1)  # Pillow has it on formats with frames only
    if num_pages == 1 and len(image.getbands()) == channels and image.mode != "P":
        return _eight_bits(np.asarray(image))
    if num_pages != channels:
        raise UnreadableError(f"it has {len(image.getbands())} channels where {channels} are needed")
    if tiff.grey_pages(image) != channels:
        raise UnreadableError(f"its {num_pages} pages are not {channels} grey images of one size")
    return _eight_bits(tiff.stacked(image, num_pages))


def _eight_bits(array: np.ndarray) -> np.ndarray:
    """Return the array as uint8; see the module's docstring."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    given = value_range()
    if given is not None and array.dtype.kind in "iuf":
        if not np.isfinite(array).all():
            raise UnreadableError("it holds values that are no finite numbers")
        return scaled(array, given)
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):  # NaN fails too
            raise UnreadableError(f"its floating-point values lie in {low:g} to {high:g}, not in 0 to 1")
        return (array * 255).round().astype(np.uint8)
    if array.dtype.kind not in "iu":
        raise UnreadableError(f"values of type {array.dtype} are no pixels")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 65535:
        raise UnreadableError(f"its values lie in {low} to {high}, not in 0 to 65535")
    sixteen = array.dtype.itemsize == 2 or high > 255
    return ((array.astype(np.uint32) + 128) // 257 if sixteen else array).astype(np.uint8)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableError(f"{width} x {height} pixels are more than the limit of {MAX_PIXELS // 10**6} million")
    if width * height == 0:
        raise UnreadableError("it has no pixels")


def _check_growth(image: Image.Image, num_bytes: int) -> None:
    """Raise `UnreadableError` for an image whose pixels take far more memory than any image's of its file size."""
    width, height = image.size
    decoded = width * height * (1 if image.mode in ("1", "L") else 4)  # as Pillow keeps them
    if decoded > max(SMALL_BYTES, MAX_GROWTH * num_bytes):
        raise UnreadableError(f"it would grow from {num_bytes:,} to {decoded:,} bytes, more than {MAX_GROWTH} times")


@contextmanager
def _reasons() -> Iterator[None]:
    """Turn whatever a decoder raises into `UnreadableError`."""
    try:
        yield
    except UnreadableError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableError("it is not an image in a supported format") from error
    except Exception as error:  # damaged files make decoders raise almost anything
        raise UnreadableError(f"{type(error).__name__}: {error}") from error
