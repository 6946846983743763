"""Reads images inside tar and zip archives without unpacking them to disk.

Archives are not trusted. Each member is checked when the archive is listed, and again when it is read. A rejected
member is listed with the reason, and reading it raises `UnreadableError` with the same text. Rejected are:

* names that lead out of the archive (`..`, absolute names, drives), links, devices, sparse and encrypted members;
* members of more than `MAX_MEMBER_BYTES`, members that grow more than `MAX_RATIO` times when they are inflated, and
  members whose size or checksum differs from what the archive says.

Archives with more than `MAX_MEMBERS` members or with huge headers raise an error as a whole.

The number of pixels is checked when an image is decoded, as for a file (`dovetail.data.reading.decode`).
"""

from __future__ import annotations

import os
import stat
import struct
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from dovetail.data.reading.decode import UnreadableError
from dovetail.errors import DataError

MAX_MEMBERS = 4_000_000
MAX_MEMBER_BYTES = 1 << 30
MAX_RATIO = 200  # flat artwork may reach it; zeros reach 1,000
SMALL_BYTES = 16 << 20  # a member that inflates to no more than this may grow by any ratio
MAX_TAR_HEADER_BYTES = 256 << 10
MAX_ZIP_DIRECTORY_BYTES = 256 << 20

_ZIP_MAGIC = (b"PK\x03\x04", b"PK\x05\x06")
_ZIP_HEADER = struct.Struct("<4s22xHH")
_ENCRYPTED = 0x1
_COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")
_TAR_SUFFIXES = (".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")


@dataclass(frozen=True, slots=True)
class Member:
    """One file in an archive.

    Attributes:
        name: Name in the archive, for messages only: it is never used as a path.
        offset: Offset of its data (tar) or its local header (zip).
        stored_bytes: Its size in the archive.
        num_bytes: Its uncompressed size, according to the archive.
        deflated: Whether it is deflated.
        checksum: CRC-32 of its content, or None if the archive has none.
        refused: Why it is not read, or None if it is.
    """

    name: str
    offset: int
    stored_bytes: int
    num_bytes: int
    deflated: bool = False
    checksum: int | None = None
    refused: str | None = None


class Archive(ABC):
    """An archive on disk. It holds no open file, so it can be pickled and used by several processes.

    Attributes:
        path: Path of the archive.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp = _stamp(path.stat())

    @abstractmethod
    def members(self) -> Iterator[Member]:
        """Yield the files in the order of the archive, including rejected ones. Folders are skipped.

        Raises:
            DovetailError: The archive is damaged or exceeds the limits.
        """

    def read(self, member: Member, most: int | None = None) -> bytes:
        """Return the content of a member, or only its first `most` bytes.

        Raises:
            UnreadableError: The member is rejected or damaged, or the archive has changed since it was listed.
        """
        if member.refused is not None:
            raise UnreadableError(member.refused)
        try:
            with self.path.open("rb", buffering=0) as file:
                if _stamp(os.fstat(file.fileno())) != self._stamp:
                    raise UnreadableError("its archive was changed after the run started")
                return self._content(file.fileno(), member, most)
        except OSError as error:
            raise UnreadableError(error.strerror or str(error)) from error

    @abstractmethod
    def _content(self, file: int, member: Member, most: int | None) -> bytes:
        """Return the first `most` bytes of a member, or the whole member."""


class TarArchive(Archive):
    """An uncompressed tar, such as a WebDataset shard."""

    def members(self) -> Iterator[Member]:
        with _sentences(self.path, "tar"), self.path.open("rb") as file:
            headers = _Bounded(file, MAX_TAR_HEADER_BYTES)
            with tarfile.open(fileobj=headers, mode="r:") as tar:  # type: ignore[call-overload]
                for number, info in enumerate(tar):
                    _check_count(number + 1)
                    tar.members = []  # tarfile would keep them all
                    if info.size < 0:
                        raise DataError("a member has a negative size")
                    if not info.isdir():
                        refused = refused_in_tar(info)
                        yield Member(info.name, info.offset_data, info.size, info.size, refused=refused)
                # At a damaged header, tarfile stops as at the end. Images must not be lost silently.
                file.seek(tar.offset)
                if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
                    raise DataError(f"the header at byte {tar.offset:,} is damaged")

    def _content(self, file: int, member: Member, most: int | None) -> bytes:
        return _exactly(file, member.num_bytes if most is None else min(most, member.num_bytes), member.offset)


class ZipArchive(Archive):
    """A zip with stored or deflated members."""

    def members(self) -> Iterator[Member]:
        with _sentences(self.path, "zip"), self.path.open("rb") as file:
            listed = zipfile.ZipFile(_Bounded(file, MAX_ZIP_DIRECTORY_BYTES)).filelist
            _check_count(len(listed))
            yield from (_zip_member(info) for info in listed if not info.is_dir())

    def _content(self, file: int, member: Member, most: int | None) -> bytes:
        magic, name_bytes, extra_bytes = _ZIP_HEADER.unpack(_exactly(file, _ZIP_HEADER.size, member.offset))
        if magic != _ZIP_MAGIC[0]:
            raise UnreadableError("its archive has no header at its offset")
        begin = member.offset + _ZIP_HEADER.size + name_bytes + extra_bytes
        wanted = member.num_bytes if most is None else min(most, member.num_bytes)
        # A little more than wanted: incompressible data grows a little when it is deflated.
        stored = _exactly(file, member.stored_bytes if most is None else min(member.stored_bytes, most + 64), begin)
        content = _inflated(stored, wanted) if member.deflated else stored[:wanted]
        if most is None and (len(content) != wanted or zlib.crc32(content) != member.checksum):
            raise UnreadableError("it is damaged: its checksum does not match")
        return content


def open_archive(path: Path) -> Archive | None:
    """Return the archive at `path`, recognised by its content, or None if the file is something else.

    Raises:
        DataError: The file cannot be opened, or is a compressed tar.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for a writer
            raise DataError(f"{str(path)!r} is not a regular file; specify another file.")
        with path.open("rb") as file:
            head = file.read(tarfile.BLOCKSIZE)
    except OSError as error:
        raise DataError(f"{str(path)!r} cannot be read ({error.strerror}); specify another file.") from error
    if head.startswith(_ZIP_MAGIC):
        return ZipArchive(path)
    named = path.name.lower().endswith(_TAR_SUFFIXES)
    if named and head.startswith(_COMPRESSED):
        raise DataError(
            f"{str(path)!r} is a compressed tar, which has no random access; decompress it to a plain .tar "
            "(this hardly changes its size, as images are compressed already)."
        )
    return TarArchive(path) if head[257:262] == b"ustar" or (named and len(head) == tarfile.BLOCKSIZE) else None


def refused_in_tar(info: tarfile.TarInfo) -> str | None:
    """Return why a member of a tar is rejected, or None."""
    if info.issym() or info.islnk():
        return "it is a link, and links in archives are not followed"
    if info.issparse() or not info.isreg():
        return "it is not a regular file"
    return refused_name(info.name) or _refused_size(info.size, info.size)


def refused_in_zip(info: zipfile.ZipInfo) -> str | None:
    """Return why a member of a zip is rejected, or None."""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return "it is a link, and links in archives are not followed"
    if kind not in (0, stat.S_IFREG):
        return "it is not a regular file"
    if info.flag_bits & _ENCRYPTED:
        return "it is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "its compression is unsupported (expected stored or deflated)"
    if info.compress_type == zipfile.ZIP_STORED and info.compress_size != info.file_size:
        return "its archive states two different sizes for it"
    return refused_name(info.filename) or _refused_size(info.file_size, info.compress_size)


def _zip_member(info: zipfile.ZipInfo) -> Member:
    return Member(
        info.filename,
        info.header_offset,
        info.compress_size,
        info.file_size,
        deflated=info.compress_type == zipfile.ZIP_DEFLATED,
        checksum=info.CRC,
        refused=refused_in_zip(info),
    )


def refused_name(name: str) -> str | None:
    """Return why a member's name is rejected, or None."""
    parts = name.replace("\\", "/").split("/")
    if parts[0] == "" or name[1:2] == ":":
        return "its name is an absolute path, which leads out of its archive"
    if ".." in parts:
        return "its name contains '..', which may lead out of its archive"
    return None


def _refused_size(num_bytes: int, stored_bytes: int) -> str | None:
    if max(num_bytes, stored_bytes) > MAX_MEMBER_BYTES:
        return f"its {max(num_bytes, stored_bytes):,} bytes exceed the limit of {MAX_MEMBER_BYTES:,}"
    if num_bytes > max(SMALL_BYTES, MAX_RATIO * stored_bytes):
        return f"it would grow from {stored_bytes:,} to {num_bytes:,} bytes, more than {MAX_RATIO} times"
    return None


def _check_count(count: int) -> None:
    if count > MAX_MEMBERS:
        raise DataError(f"it has more than {MAX_MEMBERS:,} members")


def _inflated(stored: bytes, wanted: int) -> bytes:
    """Inflate `stored` to at most `wanted` bytes. Raise `UnreadableError` if the data is damaged."""
    if wanted == 0:  # for zlib, 0 means no limit
        return b""
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(stored, wanted)
    except zlib.error as error:
        raise UnreadableError(f"it cannot be inflated: {error}") from error


def _exactly(file: int, count: int, offset: int) -> bytes:
    """Return `count` bytes of an open file from `offset` on. This moves the file's position."""
    if offset + count > os.fstat(file).st_size:  # before allocating the memory
        raise UnreadableError("its archive is truncated")
    os.lseek(file, offset, os.SEEK_SET)  # Windows has no `pread`
    parts, missing = [], count
    while missing:
        part = os.read(file, missing)
        if not part:
            raise UnreadableError("its archive is truncated")
        parts.append(part)
        missing -= len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _stamp(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns


class _Bounded:
    """A file that returns at most `most` bytes per read, so that a huge header cannot fill the memory."""

    def __init__(self, file: BinaryIO, most: int) -> None:
        self._file = file
        self._most = most
        self.seek, self.tell, self.seekable, self.close = file.seek, file.tell, file.seekable, file.close

    def read(self, count: int = -1) -> bytes:
        """Return the next bytes. Raise `DataError` if there are more than the limit."""
        content = self._file.read(min(count, self._most + 1) if count >= 0 else self._most + 1)
        if len(content) > self._most:
            raise DataError(f"a header in it has more than {self._most:,} bytes")
        return content


@contextmanager
def _sentences(path: Path, kind: str) -> Iterator[None]:
    """Turn any exception that is raised while listing an archive into a one-sentence `DataError`."""
    try:
        yield
    except Exception as error:  # damaged archives make the library raise almost anything
        reason = str(error) or type(error).__name__
        raise DataError(
            f"The archive {str(path)!r} cannot be listed as a {kind} ({reason.rstrip('.')}); download or create it "
            "again."
        ) from error
