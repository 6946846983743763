"""Reads DICOM images with pydicom: the first frame, with the values that its header gives them (such as CT numbers).

Standard: https://dicom.nema.org/medical/dicom/current/output/html/part03.html

Values are (stored value) * Rescale Slope + Rescale Intercept. MONOCHROME1, where large values are black, is inverted.
The window of the display is not applied, because it would cut values off.
"""

from __future__ import annotations

import io
import logging
import re
import warnings
from typing import Any

import numpy as np

INSTALL = "DICOM images need the package pydicom; install it with `pip install 'dovetail-ssl[medical]'`"
# Its contents are inflated as a whole when the file is opened, and may grow a thousand times.
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_REMARKS = ("ignore", None, Warning, re.compile(r"pydicom\b|PIL\."), 0)


class UnreadableDicomError(Exception):
    """A DICOM image cannot be read. The message is the reason."""


def read_dicom(content: bytes, *, most_pixels: int, most_bytes: int) -> np.ndarray:
    """Return the first frame of a DICOM file, [H, W] or [H, W, 3].

    Args:
        content: All bytes of the file.
        most_pixels: Largest number of pixels.
        most_bytes: Largest number of bytes of a frame in memory.

    Raises:
        UnreadableDicomError: pydicom is not installed, or the file has no image that it can decode.
    """
    try:
        import pydicom
        from pydicom.pixels.utils import pixel_array
    except ImportError as error:
        raise UnreadableDicomError(INSTALL) from error
    _silence()
    if _DEFLATED in content:
        raise UnreadableDicomError("it is a deflated DICOM file; convert it to another transfer syntax")
    header = pydicom.dcmread(io.BytesIO(content))
    if "PixelData" not in header:
        raise UnreadableDicomError("it is a DICOM file without an image")
    rows, columns = int(header.Rows), int(header.Columns)
    samples, bits = int(header.get("SamplesPerPixel", 1)), int(header.BitsAllocated)
    if rows * columns > most_pixels:
        raise UnreadableDicomError(f"{columns} x {rows} pixels exceed the limit of {most_pixels:,}")
    if rows * columns * samples * max(bits, 8) // 8 > most_bytes:
        raise UnreadableDicomError(f"it would grow to more than {most_bytes:,} bytes")
    try:
        stored = pixel_array(header, index=0)
    except (RuntimeError, NotImplementedError) as error:  # no decoder is installed
        syntax = header.file_meta.TransferSyntaxUID.name
        raise UnreadableDicomError(f"its compression ({syntax}) has no decoder here; decompress it first") from error
    return _values(stored, header)


def _values(stored: np.ndarray, header: Any) -> np.ndarray:
    """Return the values that the header of an image gives to the stored numbers."""
    from pydicom.pixels.processing import apply_color_lut

    kind = str(header.get("PhotometricInterpretation", ""))
    if kind == "PALETTE COLOR":
        return np.asarray(apply_color_lut(stored, header))
    if stored.ndim == 3:
        return stored
    if kind == "MONOCHROME1":
        bits = int(header.get("BitsStored", header.BitsAllocated))
        stored = -1 - stored if stored.dtype.kind == "i" else stored.dtype.type((1 << bits) - 1) - stored
    slope, intercept = float(header.get("RescaleSlope", 1)), float(header.get("RescaleIntercept", 0))
    if (slope, intercept) == (1, 0):
        return stored
    exact = slope.is_integer() and intercept.is_integer() and abs(slope) * 65535 + abs(intercept) < 2**31
    if exact and stored.dtype.itemsize <= 2:
        return stored.astype(np.int32) * int(slope) + int(intercept)
    return np.asarray(stored * slope + intercept, dtype=np.float64)


def _silence() -> None:
    """Keep remarks on odd headers from the terminal. They do not concern the pixels."""
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    if _REMARKS not in warnings.filters:
        warnings.filters = [_REMARKS, *warnings.filters]
