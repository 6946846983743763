"""Decodes image files of all supported formats to uint8 pixels. A truncated image is an error.

Formats are recognised by content: JPEG, PNG, WebP, TIFF, BMP, GIF, PPM, JPEG 2000 and AVIF (if this build of Pillow
supports them), DICOM, and arrays `[H, W, C]` in `.npy` files. The result always has 8 bits per channel, is upright and
has the requested number of channels:

* 1 channel: ITU-R 601 luma of colour images. 3 channels: RGB, with grey repeated. 4 channels: RGBA, opaque if the image
  has no fourth channel. 2 or more than 4 channels: arrays and TIFFs.
* TIFFs with unspecified samples have as many channels as samples. TIFFs with single-channel pages have as many channels
  as pages (`dovetail.data.reading.tiff`).
* Transparent images are composited over white unless alpha is one of the channels. CMYK becomes RGB. Palettes are
  looked up. The first frame of an animation is used.
* 16-bit values are divided by 257, and so are 32-bit integers above 255. Floating-point values are expected in [0, 1].
  A value range overrides this (`dovetail.data.reading.values`); views keep all levels then, as float32 in 0 to 255.

JPEGs are decoded by simplejpeg, which is the fastest at every size or as fast as PyTurboJPEG
(`benchmarks/results/speed_decoding.md`). PyTurboJPEG needs the system's libturbojpeg, while simplejpeg brings its own;
torchvision.io cannot decode at a smaller size and is deprecated; Pillow is slower at every size. Pillow decodes all
other formats.
"""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from dovetail.data.reading import dicom, tiff
from dovetail.data.reading.png import without_bad_remarks
from dovetail.data.reading.quiet import quiet
from dovetail.data.reading.recognise import FORMATS, NPY_MAGIC, TIFF_MAGIC, is_dicom
from dovetail.data.reading.values import is_deep_png, needs_all_bits, scaled, value_range, values_are_raw

MAX_PIXELS = 300_000_000
MAX_FILE_BYTES = 1 << 30
MAX_GROWTH = 200  # from the file to the pixels in memory; usual JPEGs and PNGs grow less than 50 times
SMALL_BYTES = 128 << 20  # pixels that take no more than this may grow by any factor
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
    """An image cannot be read. The message is the reason in `skipped.jsonl`."""


@dataclass(frozen=True)
class LazyImage:
    """An image of known size whose pixels are decoded on demand.

    Attributes:
        width_px: Width of the upright image, in pixels.
        height_px: Height of the upright image, in pixels.
        decode: Takes shrink (1, 2, 4 or 8) and returns uint8 [C, H, W]. JPEGs are decoded up to that factor smaller,
            all other formats at full size. Raises `UnreadableError`.
        side: Side data of the image by name, for items of a dataset that have more than an image.
    """

    width_px: int
    height_px: int
    decode: Callable[[int], Tensor]
    side: Mapping[str, Any] = field(default_factory=dict)


def open_file(path: str | Path, channels: int) -> LazyImage:
    """Open the image file at `path` with `channels` channels. Raise `UnreadableError` if that fails."""
    return open_bytes(read_file(path), channels)


def read_file(path: str | Path) -> bytes:
    """Return the bytes of a regular file of limited size. Raise `UnreadableError` if it cannot be read.

    Devices and pipes are rejected without waiting for them. Memory use is bounded by the size of the file.
    """
    with regular_file(path) as (file, size):
        if size > MAX_FILE_BYTES:
            raise UnreadableError(f"its {size:,} bytes exceed the limit of {MAX_FILE_BYTES:,}")
        return file.read(size)


@contextmanager
def regular_file(path: str | Path) -> Iterator[tuple[BinaryIO, int]]:
    """Yield a regular file and its size in bytes. Raise `UnreadableError` if it cannot be read."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        with open(handle, "rb") as file:  # noqa: PTH123 (a handle opened with O_NONBLOCK)
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                raise UnreadableError("it is not a regular file")
            yield file, status.st_size
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from error
    except MemoryError as error:
        raise UnreadableError("out of memory") from error


def open_bytes(content: bytes, channels: int, *, upright: bool = True) -> LazyImage:
    """Open the image encoded in `content`. Raise `UnreadableError` if it is not an image.

    Args:
        content: All bytes of the file.
        channels: Number of channels to decode.
        upright: Whether to apply the EXIF orientation. It is always applied to TIFFs.
    """
    if content.startswith(NPY_MAGIC):
        with _reasons():
            return from_array(np.load(io.BytesIO(content), allow_pickle=False), channels)
    if is_dicom(content):
        return from_array(_dicom(content), channels)
    if content.startswith(TIFF_MAGIC) and (bands := _bands(content, channels)) is not None:
        return from_array(bands, channels)
    if needs_all_bits() and is_deep_png(content) and content[25] != 0:  # Pillow gives the upper 8 bits
        return from_array(_deep_colours(content), channels)
    with opened(content) as image:
        if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB") and channels in (1, 3):
            return _jpeg(content, image, channels, upright)
        return from_image(image, channels, upright=upright)


def _bands(content: bytes, channels: int) -> np.ndarray | None:
    """Return the bands [H, W, C] of a TIFF that Pillow cannot read completely, or None for other TIFFs."""
    with _reasons(), quiet():
        most_bytes = max(SMALL_BYTES, MAX_GROWTH * len(content))
        try:
            return tiff.read_bands(content, channels, most_pixels=MAX_PIXELS, most_bytes=most_bytes)
        except tiff.UnreadableBandsError as error:
            raise UnreadableError(str(error)) from error


def _dicom(content: bytes) -> np.ndarray:
    """Return the first frame [H, W] or [H, W, 3] of a DICOM file."""
    with _reasons():
        try:
            return dicom.read_dicom(
                content, most_pixels=MAX_PIXELS, most_bytes=max(SMALL_BYTES, MAX_GROWTH * len(content))
            )
        except dicom.UnreadableDicomError as error:
            raise UnreadableError(str(error)) from error


def _deep_colours(content: bytes) -> np.ndarray:
    """Return the values [H, W, 3 or 4] of a PNG with 16 bits per channel and colour or alpha."""
    try:
        import imagecodecs
    except ImportError as error:
        raise UnreadableError(
            "the values of a 16-bit colour PNG need the package imagecodecs; install it with "
            "`pip install 'dovetail-ssl[tiff]'`, or save the image as .npy"
        ) from error
    with opened(content):  # checks the size
        values: np.ndarray = imagecodecs.png_decode(content)
    return values[:, :, [0, 0, 0, 1]] if values.shape[2] == 2 else values  # grey with alpha


@contextmanager
def opened(content: bytes) -> Iterator[Image.Image]:
    """Yield the Pillow image of a file after checking its size, for code that needs the raw values.

    Raises:
        UnreadableError: The file is not an image, or the block raises an exception.
    """
    if not content:
        raise UnreadableError("the file is empty")
    with _reasons(), quiet():
        image = Image.open(io.BytesIO(without_bad_remarks(content)), formats=FORMATS)
        _check_size(*image.size)
        _check_growth(image, len(content))
        yield image


def from_image(image: Image.Image, channels: int, *, upright: bool = True) -> LazyImage:
    """Convert a Pillow image. Raise `UnreadableError` if it cannot be loaded. See `open_bytes` for the arguments."""
    with _reasons(), quiet():
        _check_size(*image.size)
        if channels not in (1, 3, 4):
            pixels = _pages(image, channels)
        else:
            image.load()  # PNGs have their tags after the pixels
            turn = _turn(image, upright)
            turned = image if turn is None else image.transpose(turn)
            if needs_all_bits() and turned.mode in DEEP_MODES:
                return from_array(tiff.without_missing(np.asarray(turned), tiff.missing_value(image)), channels)
            pixels = np.asarray(_with_channels(turned, channels)).reshape(*turned.size[::-1], channels)
    return _decoded(pixels)


def from_array(array: np.ndarray, channels: int) -> LazyImage:
    """Convert an array [H, W] or [H, W, C]. Raise `UnreadableError` for other shapes."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.size == 0:
        raise UnreadableError(f"expected an array [height, width, channels], got the shape {list(array.shape)}")
    _check_size(array.shape[1], array.shape[0])
    with _reasons():
        pixels = _eight_bits(array)
        given = pixels.shape[2]
        if values_are_raw() and given in (1, 3, 4) and channels in (1, 3, 4):
            return _decoded(pixels)
        if pixels.dtype != np.uint8:
            pixels = _in_channels(pixels, channels)
        elif given != channels and given in (1, 3, 4) and channels in (1, 3, 4):
            image = Image.fromarray(pixels[:, :, 0] if given == 1 else pixels)
            pixels = np.asarray(_with_channels(image, channels)).reshape(*pixels.shape[:2], channels)
    if pixels.shape[2] != channels:
        raise UnreadableError(f"expected {channels} channels, got {pixels.shape[2]}")
    return _decoded(pixels)


def _in_channels(pixels: np.ndarray, channels: int) -> np.ndarray:
    """Convert float pixels [H, W, C] in 0 to 255 between 1, 3 and 4 channels, as `_with_channels` does for uint8."""
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


def _decoded(pixels: np.ndarray) -> LazyImage:
    height, width = pixels.shape[:2]
    # A copy if Pillow or a memory map owns the memory: torch needs it writable.
    tensor = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)
    return LazyImage(width, height, lambda shrink: tensor)


def _turn(image: Image.Image, upright: bool) -> Image.Transpose | None:
    """Return the transposition for the EXIF orientation, or None if there is none or `upright` is False."""
    if not upright or image.format == "TIFF":  # Pillow turns TIFFs when it loads them
        return None
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG)
    except Exception:  # damaged tags make Pillow raise almost anything, but the pixels are fine
        return None
    return _UPRIGHT.get(orientation) if isinstance(orientation, int) else None


def _jpeg(content: bytes, image: Image.Image, channels: int, upright: bool) -> LazyImage:
    """Return a JPEG that is decoded on demand, at the size needed."""
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

    return LazyImage(*((height, width) if turn in _SIDEWAYS else (width, height)), decode)


def _with_channels(image: Image.Image, channels: int) -> Image.Image:
    """Return `image` as L, RGB or RGBA."""
    if image.mode in DEEP_MODES:
        image = Image.fromarray(_eight_bits(np.asarray(image)))
    if image.mode == "La":  # Pillow cannot convert it directly
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
    """Return [H, W, channels] of an image with that many bands, or that many single-band pages."""
    num_pages = getattr(image, "n_frames", 1)  # only formats with frames have this attribute
    if num_pages == 1 and len(image.getbands()) == channels and image.mode != "P":
        return _eight_bits(np.asarray(image))
    if num_pages != channels:
        raise UnreadableError(f"expected {channels} channels, got {len(image.getbands())}")
    if tiff.grey_pages(image) != channels:
        raise UnreadableError(f"expected {channels} grey pages of equal size, got {num_pages} other pages")
    return _eight_bits(tiff.stacked(image, num_pages))


def _eight_bits(array: np.ndarray) -> np.ndarray:
    """Convert the array to uint8, as the module's docstring describes."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if needs_all_bits() and array.dtype.kind in "iuf":
        if not np.isfinite(array).any():
            raise UnreadableError("all of its values are NaN or infinite")
        given = value_range()
        raw = values_are_raw() or given is None
        return array.astype(array.dtype.newbyteorder("=")) if raw or given is None else scaled(array, given)
    if array.dtype.kind == "f":
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 1):  # NaN fails too
            raise UnreadableError(
                f"expected floating-point values in 0 to 1, got {low:g} to {high:g}; specify --value-range"
            )
        return (array * 255).round().astype(np.uint8)
    if array.dtype.kind not in "iu":
        raise UnreadableError(f"the dtype {array.dtype} is unsupported for pixels")
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 65535:
        raise UnreadableError(f"expected values in 0 to 65535, got {low} to {high}; specify --value-range")
    sixteen = array.dtype.itemsize == 2 or high > 255
    return ((array.astype(np.uint32) + 128) // 257 if sixteen else array).astype(np.uint8)


def _check_size(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnreadableError(f"{width} x {height} pixels exceed the limit of {MAX_PIXELS // 10**6} million")
    if width * height == 0:
        raise UnreadableError("it has no pixels")


def _check_growth(image: Image.Image, num_bytes: int) -> None:
    """Raise `UnreadableError` if the pixels take far more memory than the file size of a real image suggests."""
    width, height = image.size
    decoded = width * height * (1 if image.mode in ("1", "L") else 4)  # as Pillow keeps them
    if decoded > max(SMALL_BYTES, MAX_GROWTH * num_bytes):
        raise UnreadableError(f"it would grow from {num_bytes:,} to {decoded:,} bytes, more than {MAX_GROWTH} times")


@contextmanager
def _reasons() -> Iterator[None]:
    """Turn any exception of a decoder into `UnreadableError`."""
    try:
        yield
    except UnreadableError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableError("it is not an image in a supported format") from error
    except Exception as error:  # damaged files make decoders raise almost anything
        raise UnreadableError(f"{type(error).__name__}: {error}") from error
