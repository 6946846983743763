"""Files inside Qt's binary resource archives (.rcc), as far as images need it: stored plain or compressed with zlib.

    header  "qres", version, offsets of tree, data and names (big-endian 32-bit numbers)
    tree    one record for each file or folder: offset of its name, flags, then children (count, first) or data offset
    names   length, hash, UTF-16; data: length, bytes; compressed data begin with their unpacked length

Format: https://doc.qt.io/qt-6/resources.html and `rcc --format-version`; versions 1 to 3 differ in the record's length
and in compression by zstd (flag 4), which is not read.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from dovetail.errors import DovetailError

COMPRESSED, FOLDER, ZSTD = 1, 2, 4


def files_in(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the path and the content of every file.

    Raises:
        DovetailError: For other data than such an archive, and for content that is compressed by zstd.
    """
    if archive[:4] != b"qres":
        raise DovetailError("The file is not an archive of Qt resources: it does not start with 'qres'.")
    version, tree, data, names = struct.unpack_from(">4I", archive, 4)
    record = 14 if version == 1 else 22
    waiting = [(0, "")]
    while waiting:
        node, folder = waiting.pop()
        place = tree + node * record
        name_offset, flags = struct.unpack_from(">IH", archive, place)
        path = folder
        if node:  # the root has no name
            path = f"{folder}/{name_at(archive, names + name_offset)}".lstrip("/")
        if flags & FOLDER:
            count, first = struct.unpack_from(">II", archive, place + 6)
            waiting += [(first + child, path) for child in reversed(range(count))]
            continue
        (offset,) = struct.unpack_from(">I", archive, place + 10)
        yield path, content_at(archive, data + offset, flags, path)


def name_at(archive: bytes, place: int) -> str:
    """Return a name: its length in 16-bit units, a hash of 4 bytes, the units."""
    (length,) = struct.unpack_from(">H", archive, place)
    return archive[place + 6 : place + 6 + 2 * length].decode("utf-16-be")


def content_at(archive: bytes, place: int, flags: int, path: str) -> bytes:
    """Return a file's bytes."""
    if flags & ZSTD:
        raise DovetailError(f"{path} is compressed with zstd, which is not supported; use an older archive.")
    (length,) = struct.unpack_from(">I", archive, place)
    content = archive[place + 4 : place + 4 + length]
    return zlib.decompress(content[4:]) if flags & COMPRESSED else content
