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

from dovetail.data.reading.values import needs_all_bits

_BITS, _PHOTOMETRIC, _ORIENTATION, _SAMPLES, _EXTRA = 258, 262, 274, 277, 338
_FORMAT, _SIGNED = 339, 2
_COLOURS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4, 6: 3, 8: 3}  # number of samples by photometric interpretation
_MISSING = 42113  # GDAL_NODATA, a number as text
_BYTES = {"1": 1, "L": 1, "I;16": 2, "I;16B": 2}  # of a pixel, by mode; 4 for all others
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


def read_bands(content: bytes, channels: int, *, most_pixels: int, most_bytes: int) -> np.ndarray | None:
    """Return the bands [H, W, C] of a TIFF, or None if Pillow can read it.

    Args:
        content: All bytes of the file.
        channels: Number of channels needed.
        most_pixels: Largest number of pixels in a band.
        most_bytes: Largest number of bytes of all bands in memory.

    Raises:
        UnreadableBandsError: The TIFF has another number of bands, or they cannot be read.
    """
    try:
        image = Image.open(io.BytesIO(content), formats=("TIFF",))
    except UnidentifiedImageError:
        return by_tifffile(content, channels, most_pixels, most_bytes)
    pages = grey_pages(image)
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    if _SIGNED in tags.get(_FORMAT, ()) and max(tags.get(_BITS, (8,))) <= 8:  # Pillow reads them as unsigned
        return by_tifffile(content, pages if pages > 1 else int(tags.get(_SAMPLES, 1)), most_pixels, most_bytes)
    if pages > 1 and channels != 1:
        if pages == channels:
            check_bytes(image.width * image.height * pages, _BYTES.get(image.mode, 4), most_bytes)
            return without_missing(stacked(image, pages), missing_value(image))
        if channels != 3:
            raise UnreadableBandsError(f"expected {channels} channels, got {pages} pages of one channel")
    in_colour = len(image.getbands()) == 3 and channels in (1, 3)  # the other samples come after the colour
    deep = max(tags.get(_BITS, (8,))) > 8
    if deep and len(image.getbands()) > 1 and needs_all_bits():  # Pillow gives the upper 8 bits of colours
        found = by_tifffile(content, int(tags.get(_SAMPLES, 1)), most_pixels, most_bytes)
        return found[:, :, :3] if unexplained(image) and in_colour else found
    if not unexplained(image) or in_colour or channels == 1:
        return None
    return by_tifffile(content, channels, most_pixels, most_bytes)


def stacked(image: Image.Image, pages: int) -> np.ndarray:
    """Return the pages of a TIFF as bands."""
    found = []
    for page in range(pages):
        image.seek(page)
        found.append(np.asarray(image))
    return np.stack(found, axis=2)


def missing_value(image: Image.Image) -> str | None:
    """Return the value of missing pixels that GDAL wrote into a TIFF, or None."""
    found = getattr(image, "tag_v2", {}).get(_MISSING)  # only TIFFs have tags of this kind
    return found if isinstance(found, str) else None


def without_missing(array: np.ndarray, missing: str | None) -> np.ndarray:
    """Return the array with NaN for missing pixels, if all of its bits are needed and it has such pixels."""
    if missing is None or not needs_all_bits() or array.dtype == np.uint8:
        return array
    try:
        value = float(missing.strip("\0 "))
    except ValueError:
        return array
    absent = array == value
    return np.where(absent, np.nan, array.astype(np.float64)) if absent.any() else array


def check_bytes(values: int, itemsize: int, most_bytes: int) -> None:
    """Raise `UnreadableBandsError` if the bands take more memory than `most_bytes`."""
    if values * itemsize > most_bytes:
        raise UnreadableBandsError(
            f"its bands would take {values * itemsize:,} bytes, more than the limit of {most_bytes:,} for its size"
        )


def by_tifffile(content: bytes, channels: int, most_pixels: int, most_bytes: int) -> np.ndarray:
    """Return the bands of a TIFF, upright: the samples of the first page, or one page per band.

    Raises:
        UnreadableBandsError: The TIFF has another number of bands, or they cannot be read.
    """
    try:
        import tifffile
    except ImportError as error:
        raise UnreadableBandsError(
            "it is a TIFF whose bands need the package tifffile; install it with `pip install 'dovetail-ssl[tiff]'`"
        ) from error
    wanted = channels
    with tifffile.TiffFile(io.BytesIO(content)) as file:
        first: Any = file.pages.first
        samples = int(first.samplesperpixel)
        pages = [first]
        if samples == 1 and channels > 1 and len(file.pages) == channels:
            pages = [file.pages[number] for number in range(channels)]
            if any((page.shape, page.dtype) != (first.shape, first.dtype) for page in pages):
                raise UnreadableBandsError(f"expected {channels} pages of equal size and type, got pages that differ")
        width, height = int(first.imagewidth), int(first.imagelength)
        extra = tuple(map(int, first.extrasamples))
        if channels == 3 < samples and int(first.photometric) == 2 and not (extra and extra[0] in _ALPHA):
            channels = samples  # the colours come first, and the other bands are left out below
        if samples * len(pages) != channels:  # before allocating the memory
            raise UnreadableBandsError(f"expected {channels} channels, got {samples}")
        if width * height > most_pixels:
            raise UnreadableBandsError(f"{width} x {height} pixels exceed the limit of {most_pixels:,}")
        check_bytes(width * height * channels, 1 if first.dtype is None else first.dtype.itemsize, most_bytes)
        found = np.stack([page_of(page) for page in pages], axis=2) if len(pages) > 1 else page_of(first)
        if channels == samples != wanted:
            found = found[:, :, :wanted]
        tag = first.tags.get(_MISSING)
        return without_missing(found, None if tag is None else str(tag.value))


def page_of(page: Any) -> np.ndarray:
    """Return a page [H, W] or [H, W, C] of `tifffile`, upright."""
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
