"""Small images in every format, made on the spot."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image


def smooth(height: int = 40, width: int = 60, *, seed: int = 0) -> np.ndarray:
    """Return a smooth uint8 RGB picture [H, W, 3], in which no two corners are alike."""
    y, x = np.mgrid[0:height, 0:width]
    phase = np.random.default_rng(seed).random(3) * 6
    shades = [x / width * 200 + 20, y / height * 200 + 20, 120 + 100 * np.sin(x / 9 + y / 7 + phase[2])]
    return np.stack(shades, axis=2).astype(np.uint8)


def encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    """Return the bytes of `image` in a Pillow format."""
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def folder_of(path: Path, count: int, *, size: tuple[int, int] = (40, 60)) -> Path:
    """Return the folder `path` with `count` JPEGs in it."""
    path.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(smooth(*size, seed=number)).save(path / f"{number:03}.jpg")
    return path


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """Return EXIF data of the tags (number, type, count, four bytes of value), whether they make sense or not."""
    tags = b"".join(struct.pack("<HHI4s", *entry) for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + tags + bytes(4)
