"""Files of plain values and tensors with a checksum, and functions to write them durably.

A file is a `torch.save` archive, read with `weights_only=True`, so it cannot run code. Its SHA-256 is stored in the
comment at the end of the zip archive, so a single atomic rename replaces file and checksum. `torch.load` reads such a
file like any other.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch

from dovetail.errors import RunError
from dovetail.files.durable import flush_folder as flush_folder

MARK = b"dovetail sha256 "
COMMENT_BYTES = len(MARK) + 64
CHUNK_BYTES = 1 << 20


def read_sealed(path: Path) -> dict[str, Any]:
    """Return the values in a file on the CPU, after checking that it is intact.

    Raises:
        RunError: If the file is damaged, contains code, or is not a checkpoint.
    """
    try:
        if not is_whole(path):
            raise RunError(f"Checkpoint {path} is damaged: wrong checksum; an older one is needed.")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        first_line = str(error).split("\n", 1)[0]
        raise RunError(f"Checkpoint {path} cannot be read ({first_line}); an older one is needed.") from error
    return state


def write_sealed(values: dict[str, Any], path: Path) -> None:
    """Write plain values and tensors to a file with a checksum."""
    torch.save(values, path)
    seal(path)


def seal(path: Path) -> None:
    """Write the checksum of the archive at `path` into its comment and flush the file to disk."""
    with path.open("r+b") as file:
        digest = _digest(file, path.stat().st_size - 2)
        # An archive ends with the length of its comment in two bytes, then the comment.
        file.seek(-2, os.SEEK_END)
        file.write(COMMENT_BYTES.to_bytes(2, "little") + MARK + digest)
        file.flush()
        os.fsync(file.fileno())


def is_whole(path: Path) -> bool:
    """Whether the archive at `path` has a correct checksum."""
    body = path.stat().st_size - 2 - COMMENT_BYTES
    if body <= 0:
        return False
    with path.open("rb") as file:
        digest = _digest(file, body)
        return file.read() == COMMENT_BYTES.to_bytes(2, "little") + MARK + digest


def digest_of(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return _digest(file, path.stat().st_size).decode()


def _digest(file: Any, size: int) -> bytes:
    """Return the hexadecimal SHA-256 of the first `size` bytes; the file's position is after them."""
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
    """Link `target` to `source` atomically, or copy it if the file system has no links."""
    aside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    aside.unlink(missing_ok=True)
    try:
        os.link(source, aside)
    except OSError:
        shutil.copyfile(source, aside)
        with aside.open("r+b") as file:
            os.fsync(file.fileno())
    aside.replace(target)
    # Renaming a link onto another link of the same file does nothing and keeps both.
    aside.unlink(missing_ok=True)
