"""Shards that are not on this machine: fetched one by one into a folder of bounded size, by all processes together.

The first process that needs a shard fetches it, the others wait for it. When there are more than `keep` shards, those
that nobody has read for longest are removed; who needs one again fetches it again.

Programs fetch: curl for http, https and ftp, `aws s3 cp`, `gcloud storage cat`, `hdfs dfs -cat`. They are started
directly and never through a shell, and a name is always one argument. Credentials are the programs' own matter.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from dovetail.data.reading.decode import UnreadableError
from dovetail.data.shards.names import SCHEMES, is_remote
from dovetail.errors import DataError, ResourceError

TRIES = 3
PAUSE_SECONDS = 2.0
KEEP = 24

_COMMANDS = {
    "http": ["curl", "--silent", "--show-error", "--globoff", "--location", "--fail", "--"],
    "https": ["curl", "--silent", "--show-error", "--globoff", "--location", "--fail", "--"],
    "ftp": ["curl", "--silent", "--show-error", "--globoff", "--fail", "--"],
    "s3": ["aws", "s3", "cp", "--only-show-errors"],
    "gs": ["gcloud", "storage", "cat"],
    "hdfs": ["hdfs", "dfs", "-cat"],
}


def check_fetchable(name: str) -> None:
    """Raise `DovetailError` unless there is a program here that fetches `name`."""
    if not is_remote(name):
        return
    scheme = name.split("://", 1)[0]
    if scheme not in SCHEMES:
        raise DataError(f"{scheme}:// cannot be fetched here; copy the shards to a disk and name their folder.")
    if scheme != "file" and shutil.which(_COMMANDS[scheme][0]) is None:
        raise ResourceError(
            f"{_COMMANDS[scheme][0]!r}, which fetches {scheme}://, is not installed; install it, or copy the shards to "
            "a disk and name their folder."
        )


def check_cache(folder: Path) -> None:
    """Make the folder that fetched shards are kept in; raise `ResourceError` unless it can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ResourceError(
            f"Fetched shards cannot be kept in {folder} ({error.strerror or error}); name a folder that can be "
            "written in the environment variable DOVETAIL_CACHE."
        ) from error


def local_path(name: str) -> Path | None:
    """Return the file that a shard's name means on this machine; None if it has to be fetched."""
    if not is_remote(name):
        return Path(name)
    return Path(unquote(urlsplit(name).path)) if name.startswith("file://") else None


class ShardCache:
    """A folder of fetched shards. Holds no open file, so that workers take a copy each."""

    def __init__(self, folder: Path, *, keep: int = KEEP) -> None:
        """Keep at most about `keep` shards in `folder`, which is made when the first one is fetched."""
        self.folder = folder
        self.keep = keep

    def path(self, name: str) -> Path:
        """Return the shard as a file, fetched unless it is there.

        Raises:
            UnreadableError: It cannot be fetched, or not be kept.
        """
        target = self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.tar"
        try:
            self._ensure(name, target)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UnreadableError(f"its shard cannot be kept in {self.folder} (DOVETAIL_CACHE): {reason}") from error
        return target

    def _ensure(self, name: str, target: Path) -> None:
        """Fetch a shard unless it is there."""
        if not self._used(target):
            self.folder.mkdir(parents=True, exist_ok=True)
            # Among the processes of this machine; it ends with the process that holds it, however that ends.
            with FileLock(target.with_suffix(".lock")):
                if not self._used(target):
                    self._make_room()
                    self._fetch(name, target)

    def _used(self, path: Path) -> bool:
        """Return whether a shard is there; if so, note that it was used, in a time that is nobody else's."""
        try:
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
        except FileNotFoundError:
            return False
        return True

    def _make_room(self) -> None:
        """Remove the shards used longest ago, down to one less than there may be."""
        with FileLock(self.folder / "room.lock"):
            found = []
            for path in self.folder.glob("*.tar"):
                with contextlib.suppress(FileNotFoundError):
                    found.append((path.stat().st_atime_ns, path))
            for _, path in sorted(found)[: max(len(found) - self.keep + 1, 0)]:
                with contextlib.suppress(PermissionError):  # Windows removes nothing that another process reads
                    path.unlink(missing_ok=True)
                    path.with_suffix(".lock").unlink(missing_ok=True)

    def _fetch(self, name: str, target: Path) -> None:
        fresh = target.with_suffix(f".{os.getpid()}.tmp")
        try:
            for attempt in range(TRIES):
                if attempt:
                    time.sleep(PAUSE_SECONDS * 2**attempt)
                with fresh.open("wb") as file:
                    reason = fetched_into(file.fileno(), name)
                if reason is None:
                    fresh.replace(target)
                    return
            raise UnreadableError(f"its shard could not be fetched in {TRIES} tries: {reason}")
        finally:
            fresh.unlink(missing_ok=True)


def fetched_into(file: int, name: str) -> str | None:
    """Write a shard into an open file; return why that failed, None if it did not."""
    scheme = name.split("://", 1)[0]
    command = [*_COMMANDS[scheme], name, *(["-"] if scheme == "s3" else [])]
    try:
        ended = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    if ended.returncode == 0:
        return None
    said = ended.stderr.decode(errors="replace").strip().splitlines()
    return said[-1][:200] if said else f"the command ended with {ended.returncode}"
