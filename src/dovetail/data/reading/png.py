"""PNGs whose remarks are damaged or huge: Pillow refuses the whole file for them, though no pixel depends on them.

Format: https://www.w3.org/TR/png-3/#5Chunk-layout
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

MAGIC = b"\x89PNG\r\n\x1a\n"
MOST_BYTES = 1 << 20  # what Pillow inflates of a remark
_COMPRESSED = (b"iCCP", b"zTXt")  # a name, a zero byte, a byte for the method, and what is compressed
_TEXTS = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")


def without_bad_remarks(content: bytes) -> bytes:
    """Return a PNG without the ancillary chunks that are damaged or huge; as it is where there is none."""
    if not content.startswith(MAGIC):
        return content
    kept, end, dropped = [content[: len(MAGIC)]], len(MAGIC), False
    for begin, end in _chunks(content):
        if _is_bad(memoryview(content)[begin:end]):
            dropped = True
        else:
            kept.append(content[begin:end])
    return b"".join([*kept, content[end:]]) if dropped else content


def _chunks(content: bytes) -> Iterator[tuple[int, int]]:
    """Yield where each chunk begins and ends, up to the first that the file does not hold whole."""
    begin = len(MAGIC)
    while begin + 12 <= len(content):
        end = begin + 12 + struct.unpack_from(">I", content, begin)[0]
        if end > len(content):
            return
        yield begin, end
        begin = end


def _is_bad(chunk: memoryview) -> bool:
    """Return whether a chunk (length, kind, data, checksum) is one that can be left out, and better is."""
    kind = bytes(chunk[4:8])
    if not kind[0] & 0x20:  # a capital letter first: a chunk that pixels depend on
        return False
    if zlib.crc32(chunk[4:-4]) != struct.unpack(">I", chunk[-4:])[0]:
        return kind != b"tRNS"  # transparency is a matter of pixels
    if kind not in _TEXTS:
        return False
    if len(chunk) > MOST_BYTES:
        return True
    if kind in _COMPRESSED:
        return _inflates_beyond(bytes(chunk[8:-4]).partition(b"\0")[2][1:])
    if kind == b"iTXt":
        _, _, rest = bytes(chunk[8:-4]).partition(b"\0")
        text = rest[2:].split(b"\0", 2)[-1]
        return rest[:1] == b"\1" and _inflates_beyond(text)
    return False


def _inflates_beyond(data: bytes) -> bool:
    """Return whether data inflates to more than Pillow takes, or not at all."""
    try:
        return len(zlib.decompressobj().decompress(data, MOST_BYTES + 1)) > MOST_BYTES
    except zlib.error:
        return True
