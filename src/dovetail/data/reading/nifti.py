"""Reads single slices of NIfTI volumes (.nii, .nii.gz). nibabel parses the headers.

Format: https://nifti.nimh.nih.gov/nifti-1 and https://nifti.nimh.nih.gov/nifti-2

A slice is a plane of the first two axes, as stored: rows along the second axis, columns along the first. Further axes
after the third are channels.

Shapes: H x W pixels, C channels.
"""

from __future__ import annotations

import io
import logging
import math
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dovetail.data.reading.decode import MAX_FILE_BYTES, MAX_GROWTH, SMALL_BYTES, UnreadableError, regular_file
from dovetail.errors import ResourceError

HEADER_BYTES = 544  # of NIfTI-2, with the bytes that announce extensions
_GZIP = b"\x1f\x8b"
_FIRST_BYTES = 1 << 16


@dataclass(frozen=True)
class Volume:
    """The header of a NIfTI file.

    Attributes:
        path: Path of the file.
        shape: Columns, rows, slices and channels.
        dtype: Type of the stored values.
        offset: Position of the first value in the uncompressed file.
        slope: Factor of the stored values.
        intercept: Added to them afterwards.
        packed: Whether the file is compressed with gzip.
    """

    path: str
    shape: tuple[int, int, int, int]
    dtype: np.dtype[Any]
    offset: int
    slope: float
    intercept: float
    packed: bool

    @property
    def num_slices(self) -> int:
        """Number of slices along the third axis."""
        return self.shape[2]

    @property
    def num_bytes(self) -> int:
        """Number of bytes of all values."""
        return math.prod(self.shape) * self.dtype.itemsize


def library() -> Any:
    """Return nibabel. Raise `ResourceError` if it is not installed."""
    try:
        import nibabel
    except ImportError as error:
        raise ResourceError(
            "NIfTI volumes need the package nibabel; install it with `pip install 'dovetail-ssl[medical]'`."
        ) from error
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)  # remarks on odd headers
    return nibabel


def read_header(path: str | Path) -> Volume:
    """Return the header of a NIfTI file. Raise `UnreadableError` if it has none, or if the volume is too large."""
    nibabel = library()
    with regular_file(path) as (file, size):
        head = file.read(_FIRST_BYTES)
    packed = head.startswith(_GZIP)
    try:
        plain = zlib.decompressobj(zlib.MAX_WBITS | 16).decompress(head, HEADER_BYTES) if packed else head
        kind = nibabel.Nifti2Header if plain[4:7] == b"n+2" else nibabel.Nifti1Header
        header = kind.from_fileobj(io.BytesIO(plain), check=True)
        shape, dtype = [int(side) for side in header.get_data_shape()], header.get_data_dtype()
        slope, intercept = header.get_slope_inter()
        offset = int(header["vox_offset"])
    except Exception as error:  # damaged headers make it raise almost anything
        raise UnreadableError(f"it is not a NIfTI volume in one file ({error})") from error
    shape += [1] * (3 - len(shape))
    volume = Volume(
        *(str(path), (shape[0], shape[1], shape[2], math.prod(shape[3:])), dtype, offset),
        *(1.0 if slope is None else float(slope), 0.0 if intercept is None else float(intercept), packed),
    )
    if min(volume.shape) < 1 or offset < 0 or dtype.hasobject:
        raise UnreadableError("it has no values")
    most = min(MAX_FILE_BYTES, max(SMALL_BYTES, MAX_GROWTH * size)) if packed else size - offset
    if volume.num_bytes > most:
        raise UnreadableError(f"its {volume.num_bytes:,} bytes of values exceed the {most:,} that its size allows")
    return volume


def read_values(volume: Volume) -> bytes:
    """Return all values of a compressed volume. Raise `UnreadableError` if that fails."""
    wanted = volume.offset + volume.num_bytes
    parts: list[bytes] = []
    inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)
    try:
        with regular_file(volume.path) as (file, _):
            while wanted > 0:
                packed = inflate.unconsumed_tail or file.read(_FIRST_BYTES * 16)
                part = inflate.decompress(packed, min(wanted, 1 << 24)) if packed else b""
                if not packed or (inflate.eof and not part):
                    raise UnreadableError("it is truncated")
                parts.append(part)
                wanted -= len(part)
    except zlib.error as error:
        raise UnreadableError(f"it cannot be inflated: {error}") from error
    return b"".join(parts)[volume.offset :]


def slice_of(volume: Volume, number: int, values: bytes | None) -> np.ndarray:
    """Return slice `number` of a volume, [H, W, C].

    Args:
        volume: Header of the file.
        number: Index along the third axis.
        values: All values, or None to read the slice from the uncompressed file.

    Raises:
        UnreadableError: The file is truncated.
    """
    columns, rows, slices, channels = volume.shape
    plane = columns * rows * volume.dtype.itemsize
    places = [(number + slices * channel) * plane for channel in range(channels)]
    if values is not None:
        parts = [values[place : place + plane] for place in places]
    else:
        parts = []
        with regular_file(volume.path) as (file, _):
            for place in places:
                file.seek(volume.offset + place, os.SEEK_SET)
                parts.append(file.read(plane))
    if any(len(part) != plane for part in parts):
        raise UnreadableError("it is truncated")
    stored = np.stack([np.frombuffer(part, volume.dtype).reshape(rows, columns) for part in parts], axis=2)
    if stored.dtype.names is not None:  # colours
        stored = np.stack([stored[name][:, :, 0] for name in stored.dtype.names], axis=2)
    if (volume.slope, volume.intercept) == (1, 0):
        return stored
    return np.asarray(stored * np.float64(volume.slope) + volume.intercept)
