"""What is written into PNGs beside their pixels."""

from __future__ import annotations

import struct
import zlib

import pytest
from PIL import Image

from dovetail.data.reading.decode import (
    UnreadableError,
)
from tests.data.photos import encoded
from tests.data.reading.test_decode import EXPECTED, IMAGE, read


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
