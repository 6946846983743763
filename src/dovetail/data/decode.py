"""One image file -> uint8 pixels, whatever the format, and never half of an image.

Formats are told by content: JPEG, PNG, WebP, TIFF, BMP and GIF; arrays `[H, W, C]` in `.npy` files. What comes out is
always 8 bits a channel, upright (EXIF), and has the channels asked for:

* 1 channel: ITU-R 601 luma of colour images. 3 channels: RGB, grey repeated. 4 channels: RGBA as it stands, opaque
  where an image has no fourth channel. 2 or more than 4 channels: arrays, and TIFFs with one page a channel.
* Transparency is laid over white unless it is itself a channel. CMYK becomes RGB. Palettes are looked up.
* Of animations the first frame counts. 16-bit values are divided by 257; 32-bit integers likewise where they exceed
  255; floating point is taken as [0, 1].

JPEGs go through simplejpeg. Measured (`benchmarks/results/speed_decoding.md`), it is the fastest at every size or as
fast as PyTurboJPEG, which needs a libturbojpeg of the system where simplejpeg brings its own; torchvision.io cannot
decode them smaller, and is deprecated; Pillow takes longer at every size, and is what everything else goes through.
"""

from __future__ import annotations

import io
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

MAX_PIXELS = 300_000_000
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF")
_NPY_MAGIC = b"\x93NUMPY"
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_MAGIC = (_NPY_MAGIC, b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM", *_TIFF_MAGIC)
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


class UnreadableError(Exception):
    """A photograph that cannot be read; the message is the reason that `skipped.jsonl` gives."""


@dataclass(frozen=True)
class Photograph:
    """A photograph whose size is known and whose pixels are decoded on demand.

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
    return head.startswith(_MAGIC) or (head[:4] == b"RIFF" and head[8:12] == b"WEBP")


def open_file(path: str | Path, channels: int) -> Photograph:
    """Return the photograph in the file at `path` with that many channels; raise `UnreadableError` otherwise."""
    return open_bytes(read_file(path), channels)


def read_file(path: str | Path) -> bytes:
    """Return the bytes of a file; raise `UnreadableError` if it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UnreadableError(error.strerror or str(error)) from error


def open_bytes(content: bytes, channels: int) -> Photograph:
    """Return the photograph encoded in `content`; raise `UnreadableError` where there is none."""
    if not content:
        raise UnreadableError("the file is empty")
    with _reasons():
        if content.startswith(_NPY_MAGIC):
            return from_array(np.load(io.BytesIO(content), allow_pickle=False), channels)
        with _quiet_pillow():
            image = Image.open(io.BytesIO(content), formats=FORMATS)
            _check_size(*image.size)
            if image.format in ("JPEG", "MPO") and image.mode in ("L", "RGB") and channels in (1, 3):
                return _jpeg(content, image, channels)
            return from_image(image, channels)


def from_image(image: Image.Image, channels: int) -> Photograph:
    """Return the photograph in a Pillow image; raise `UnreadableError` if it cannot be loaded."""
    with _reasons(), _quiet_pillow(), _quiet_libtiff(image):
        _check_size(*image.size)
        # Pillow turns TIFFs upright by itself when it loads them.
        turn = None if image.format == "TIFF" else _UPRIGHT.get(image.getexif().get(_ORIENTATION_TAG, 1))
        if channels not in (1, 3, 4):
            pixels = _pages(image, channels)
        else:
            upright = image if turn is None else image.transpose(turn)
            pixels = np.asarray(_with_channels(upright, channels)).reshape(*upright.size[::-1], channels)
    return _decoded(pixels)


def from_array(array: np.ndarray, channels: int) -> Photograph:
    """Return the photograph in an array [H, W] or [H, W, C]; raise `UnreadableError` if it is something else."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.size == 0:
        raise UnreadableError(f"an array of shape {list(array.shape)} is no image [height, width, channels]")
    _check_size(array.shape[1], array.shape[0])
    with _reasons():
        pixels = _eight_bits(array)
        given = pixels.shape[2]
        if given != channels and given in (1, 3, 4) and channels in (1, 3, 4):
            image = Image.fromarray(pixels[:, :, 0] if given == 1 else pixels)
            pixels = np.asarray(_with_channels(image, channels)).reshape(*pixels.shape[:2], channels)
    if pixels.shape[2] != channels:
        raise UnreadableError(f"it has {pixels.shape[2]} channels where {channels} are needed")
    return _decoded(pixels)


def _decoded(pixels: np.ndarray) -> Photograph:
    height, width = pixels.shape[:2]
    # A copy where Pillow or a memory map owns the memory: torch wants to be able to write.
    tensor = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).permute(2, 0, 1)
    return Photograph(width, height, lambda shrink: tensor)


def _jpeg(content: bytes, image: Image.Image, channels: int) -> Photograph:
    """Return a JPEG that is decoded later, at the size that is needed then."""
    orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    turn = _UPRIGHT.get(orientation)
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
                return from_image(Image.open(io.BytesIO(content), formats=FORMATS), channels).decode(1)
        if turn is not None:
            upright = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0]).transpose(turn)
            pixels = np.asarray(upright).reshape(*upright.size[::-1], channels)
        return _decoded(pixels).decode(1)

    return Photograph(*((height, width) if orientation >= 5 else (width, height)), decode)


def _with_channels(image: Image.Image, channels: int) -> Image.Image:
    """Return `image` as L, RGB or RGBA."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I", "F"):
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
    if num_pages == 1 and len(image.getbands()) == channels:
        return _eight_bits(np.asarray(image))
    if num_pages != channels:
        raise UnreadableError(f"it has {len(image.getbands())} channels where {channels} are needed")
    pages = []
    for page in range(num_pages):
        image.seek(page)
        pages.append(_eight_bits(np.asarray(image)))
    if any(page.ndim != 2 or page.shape != pages[0].shape for page in pages):
        raise UnreadableError(f"its {num_pages} pages are not {channels} grey images of one size")
    return np.stack(pages, axis=2)


def _eight_bits(array: np.ndarray) -> np.ndarray:
    """Return the array as uint8; see the module's docstring."""
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
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


@contextmanager
def _reasons() -> Iterator[None]:
    """Turn whatever a decoder raises into `UnreadableError`."""
    try:
        yield
    except UnreadableError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableError("it is no image in a format that is read here") from error
    except Exception as error:  # damaged files make decoders raise almost anything
        raise UnreadableError(f"{type(error).__name__}: {error}") from error


@contextmanager
def _quiet_libtiff(image: Image.Image) -> Iterator[None]:
    """Send what libtiff itself writes to the terminal on damaged TIFFs nowhere; Pillow raises the same."""
    if image.format != "TIFF":
        yield
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _quiet_pillow() -> Iterator[None]:
    """Silence Pillow's remarks on odd files, and replace its limit of pixels by `_check_size`."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit
