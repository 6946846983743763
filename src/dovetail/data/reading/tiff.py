"""Reads TIFF bands that Pillow does not support: unspecified samples, as in GeoTIFFs, and bands stored as pages.

Pillow reads grey, RGB, palettes, CMYK and YCbCr, each with at most a known alpha. It drops other samples, or does not
recognise the file. Such files are read by tifffile and decompressed by imagecodecs (the extra `tiff`).

Shapes: H x W pixels, C bands.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from dovetail.data.reading.values import value_range

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _EXTRA = 258, 262, 274, 277, 338
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # number of samples by photometric interpretation
_ALPHA = (1, 2)
_TURNED = {
    2: lambda array: array[:, ::-1],
    3: lambda array: array[::-1, ::-1],
    4: lambda array: array[::-1],
    5: lambda array: array.swapaxes(0, 1),
    6: lambda array: array.swapaxes(0, 1)[:, ::-1],
    7: lambda array: array[::-1, ::-1].swapaxes(0, 1),
    8: lambda array: array.swapaxes(0, 1)[::-1],
}


class UnreadableBandsError(Exception):
    """The bands of a TIFF cannot be read. The message is the reason."""


def unexplained(image: Image.Image) -> int:
    """Return the number of samples in a TIFF beyond its colour and alpha, 0 for other formats."""
    if image.format != "TIFF":
        return 0
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    beyond = int(tags.get(_SAMPLES, 1)) - _COLOURS.get(int(tags.get(_PHOTOMETRIC, 1)), 1)
    extra = tags.get(_EXTRA, ())
    return max(beyond - (len(extra) > 0 and extra[0] in _ALPHA), 0)


def grey_pages(image: Image.Image) -> int:
    """Return the number of single-band pages in a TIFF, or 1 if they differ in size or have several bands."""
    pages = getattr(image, "n_frames", 1)  # only formats with frames have this attribute
    if image.format != "TIFF" or pages == 1 or len(image.getbands()) != 1 or image.mode == "P":
        return 1
    size, mode = image.size, image.mode
    try:
        for page in range(1, pages):
            image.seek(page)
            if (image.size, image.mode) != (size, mode):  # a thumbnail, an overview or a mask
                return 1
    finally:
        image.seek(0)
    return int(pages)


def read_bands(content: bytes, channels: int, *, most_pixels: int) -> np.ndarray | None:
    """Return the bands [H, W, C] of a TIFF, or None if Pillow can read it.

    Args:
        content: All bytes of the file.
        channels: Number of channels needed.
        most_pixels: Largest number of pixels in a band.

    Raises:
        UnreadableBandsError: The TIFF has another number of bands, or they cannot be read.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=("TIFF",))
    except UnidentifiedImageError:
        return by_tifffile(content, channels, most_pixels)
    pages = grey_pages(image)
    if pages > 1 and channels != 1:
        if pages == channels:
            return stacked(image, pages)
        if channels != 3:
            raise UnreadableBandsError(f"expected {channels} channels, got {pages} pages of one channel")
    deep = max(image.tag_v2.get(_BITS, (8,))) > 8  # type: ignore[attr-defined]
    if deep and len(image.getbands()) > 1 and value_range() is not None:  # Pillow gives the upper 8 bits of colours
        return by_tifffile(content, int(image.tag_v2.get(_SAMPLES, 1)), most_pixels)  # type: ignore[attr-defined]
    in_colour = len(image.getbands()) == 3 and channels in (1, 3)  # the other samples come after the colour
    if not unexplained(image) or in_colour or channels == 1:
        return None
    return by_tifffile(content, channels, most_pixels)


def stacked(image: Image.Image, pages: int) -> np.ndarray:
    """Return the pages of a TIFF as bands."""
    found = []
    for page in range(pages):
        image.seek(page)
        found.append(np.asarray(image))
    return np.stack(found, axis=2)


def by_tifffile(content: bytes, channels: int, most_pixels: int) -> np.ndarray:
    """Return the bands of the first page of a TIFF, upright. Raise `UnreadableBandsError` if that fails."""
    try:
        import tifffile
    except ImportError as error:
        raise UnreadableBandsError(
            "it is a TIFF whose bands need the package tifffile; install it with `pip install 'dovetail-ssl[tiff]'`"
        ) from error
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        page: Any = file.pages.first
        samples = int(page.samplesperpixel)
        width, height = int(page.imagewidth), int(page.imagelength)
        if samples != channels:  # before allocating the memory
            raise UnreadableBandsError(f"expected {channels} channels, got {samples}")
        if width * height > most_pixels:
            raise UnreadableBandsError(f"{width} x {height} pixels exceed the limit of {most_pixels:,}")
        try:
            found = np.asarray(page.asarray())
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            compression = getattr(page.compression, "name", page.compression)
            raise UnreadableBandsError(
                f"its compression ({compression}) needs the package imagecodecs; install it with "
                "`pip install 'dovetail-ssl[tiff]'`"
            ) from error
        if int(page.planarconfig) == 2 and found.ndim == 3:
            found = np.moveaxis(found, 0, 2)
        tag = page.tags.get(_ORIENTATION)
        turn = _TURNED.get(int(tag.value)) if tag is not None else None
        return found if turn is None else turn(found)
