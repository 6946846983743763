"""Checkpoints that are whole or absent: written aside, flushed, renamed, and carrying their own checksum.

A checkpoint is a `torch.save` archive of plain values and tensors, read with `weights_only=True`, so that it cannot
carry code. Its SHA-256 stands in the archive's comment (a zip file may end in one), which makes file and checksum
one atomic rename; `torch.load` reads such a file as any other.

    checkpoints/last.ckpt         the newest
    checkpoints/previous.ckpt     the one before, in case the disk damages the newest
    checkpoints/epoch-0010.ckpt   kept ones, by whole epochs done
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from dovetail.errors import DovetailError

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"
MARK = b"dovetail sha256 "
COMMENT_BYTES = len(MARK) + 64
CHUNK_BYTES = 1 << 20

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run in `folder`; made when the first one is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def last(self) -> Path:
        """Where the newest checkpoint stands."""
        return self.folder / LAST

    def save(self, state: dict[str, Any], *, keep_as_epoch: int | None = None) -> Path:
        """Write `state` as the newest checkpoint; with `keep_as_epoch` keep it under that epoch's name too.

        Raises:
            DovetailError: When the disk does not take it; the checkpoints written before stay as they are.
        """
        fresh = self.folder / f"{LAST}.{os.getpid()}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save(state, fresh)
            seal(fresh)
            if self.last.exists():
                link_or_copy(self.last, self.folder / PREVIOUS)
            fresh.replace(self.last)
            if keep_as_epoch is not None:
                link_or_copy(self.last, self.folder / f"epoch-{keep_as_epoch:04d}.ckpt")
            flush_folder(self.folder)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
            with contextlib.suppress(OSError):
                fresh.unlink(missing_ok=True)
            raise DovetailError(
                f"No checkpoint could be written to {self.folder} ({error}); make room there and go on with --resume."
            ) from error
        return self.last

    def load(self) -> dict[str, Any] | None:
        """Return the newest whole checkpoint's state on the processor, None when none was ever written.

        Raises:
            DovetailError: When there are checkpoints and none is whole.
        """
        candidates = [path for path in (self.last, self.folder / PREVIOUS) if path.exists()]
        for path in candidates:
            try:
                return read(path)
            except DovetailError as error:
                log.warning("%s", error)
        if candidates:
            raise DovetailError(f"No checkpoint in {self.folder} is whole; start again with --overwrite.")
        return None

    def clear_leftovers(self) -> None:
        """Remove what interrupted writes left behind."""
        for path in self.folder.glob("*.tmp"):
            path.unlink(missing_ok=True)


def read(path: Path) -> dict[str, Any]:
    """Return the state in a checkpoint, on the processor, after checking that it is whole.

    Raises:
        DovetailError: When it is damaged, holds code, or is no checkpoint.
    """
    try:
        if not is_whole(path):
            raise DovetailError(f"Checkpoint {path} is damaged: its checksum does not fit; an older one is needed.")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        first_line = str(error).split("\n", 1)[0]
        raise DovetailError(f"Checkpoint {path} cannot be read ({first_line}); an older one is needed.") from error
    return state


def seal(path: Path) -> None:
    """Put the checksum of the archive at `path` into its comment and flush the file to disk."""
    with path.open("r+b") as file:
        digest = _digest(file, path.stat().st_size - 2)
        # An archive ends in two bytes that hold the length of its comment, then the comment.
        file.seek(-2, os.SEEK_END)
        file.write(COMMENT_BYTES.to_bytes(2, "little") + MARK + digest)
        file.flush()
        os.fsync(file.fileno())


def is_whole(path: Path) -> bool:
    """Whether the archive at `path` carries its checksum and fits it."""
    body = path.stat().st_size - 2 - COMMENT_BYTES
    if body <= 0:
        return False
    with path.open("rb") as file:
        digest = _digest(file, body)
        return file.read() == COMMENT_BYTES.to_bytes(2, "little") + MARK + digest


def _digest(file: Any, size: int) -> bytes:
    """Return the hexadecimal SHA-256 of the first `size` bytes, leaving the file's position after them."""
    digest = hashlib.sha256()
    file.seek(0)
    while size > 0:
        chunk = file.read(min(CHUNK_BYTES, size))
        if not chunk:
            break
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest().encode()


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, atomically; a copy where the file system has no links."""
    aside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    aside.unlink(missing_ok=True)
    try:
        os.link(source, aside)
    except OSError:
        shutil.copyfile(source, aside)
        with aside.open("r+b") as file:
            os.fsync(file.fileno())
    aside.replace(target)
    # Renaming one link onto another of the same file does nothing and leaves both.
    aside.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Flush a folder's names to disk, where the system lets one."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
