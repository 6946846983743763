"""Removes damaged or huge text chunks from PNGs. Pillow rejects such files, although no pixel depends on the chunks.

Format: https://www.w3.org/TR/png-3/#5Chunk-layout
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

MAGIC = b"\x89PNG\r\n\x1a\n"
MOST_BYTES = 1 << 20  # Pillow's limit for inflated text
_COMPRESSED = (b"iCCP", b"zTXt")  # a name, a zero byte, a byte for the method, and the compressed data
_TEXTS = (b"iCCP", b"tEXt", b"zTXt", b"iTXt")


def without_bad_remarks(content: bytes) -> bytes:
    """Return a PNG without its damaged or huge ancillary chunks. Other files are returned unchanged."""
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
    """Yield the begin and end of each chunk, up to the first truncated one."""
    begin = len(MAGIC)
    while begin + 12 <= len(content):
        end = begin + 12 + struct.unpack_from(">I", content, begin)[0]
        if end > len(content):
            return
        yield begin, end
        begin = end


def _is_bad(chunk: memoryview) -> bool:
    """Return whether a chunk (length, kind, data, checksum) is optional and damaged or huge."""
    kind = bytes(chunk[4:8])
    if not kind[0] & 0x20:  # a capital letter first: pixels depend on this chunk
        return False
    if zlib.crc32(chunk[4:-4]) != struct.unpack(">I", chunk[-4:])[0]:
        return kind != b"tRNS"  # transparency belongs to the pixels
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
    """Return whether data inflates to more than Pillow accepts, or cannot be inflated."""
    try:
        return len(zlib.decompressobj().decompress(data, MOST_BYTES + 1)) > MOST_BYTES
    except zlib.error:
        return True
