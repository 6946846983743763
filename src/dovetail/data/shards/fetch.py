"""Downloads remote shards into a cache folder of bounded size, which all processes share.

The first process that needs a shard downloads it, and the others wait for it. If there are more than `keep` shards, the
least recently used ones are removed, and downloaded again when they are needed.

Downloads use external programs: curl for http, https and ftp, `aws s3 cp`, `gcloud storage cat`, `hdfs dfs -cat`. They
are started directly and never through a shell, and a name is always a single argument. Each program handles its own
credentials.
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
    """Raise `DovetailError` unless a program is installed that can download `name`."""
    if not is_remote(name):
        return
    scheme = name.split("://", 1)[0]
    if scheme not in SCHEMES:
        raise DataError(f"{scheme}:// is unsupported; copy the shards to a disk and specify their folder.")
    if scheme != "file" and shutil.which(_COMMANDS[scheme][0]) is None:
        raise ResourceError(
            f"{_COMMANDS[scheme][0]!r}, which downloads {scheme}:// URLs, is not installed; install it, or copy the "
            "shards to a disk and specify their folder."
        )


def check_cache(folder: Path) -> None:
    """Create the cache folder. Raise `ResourceError` if it is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ResourceError(
            f"The shard cache {folder} is not writable ({error.strerror or error}); set the environment variable "
            "DOVETAIL_CACHE to a writable folder."
        ) from error


def local_path(name: str) -> Path | None:
    """Return the local file of a shard, or None if it has to be downloaded."""
    if not is_remote(name):
        return Path(name)
    return Path(unquote(urlsplit(name).path)) if name.startswith("file://") else None


class ShardCache:
    """A cache folder of downloaded shards. It holds no open file, so each worker gets its own copy."""

    def __init__(self, folder: Path, *, keep: int = KEEP) -> None:
        """Keep about `keep` shards at most in `folder`, which is created at the first download."""
        self.folder = folder
        self.keep = keep

    def path(self, name: str) -> Path:
        """Return the local file of a shard, and download it first if needed.

        Raises:
            UnreadableError: The shard cannot be downloaded or saved.
        """
        target = self.folder / f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.tar"
        try:
            self._ensure(name, target)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UnreadableError(f"its shard cannot be saved to {self.folder} (DOVETAIL_CACHE): {reason}") from error
        return target

    def _ensure(self, name: str, target: Path) -> None:
        """Download a shard unless it is in the cache."""
        if not self._used(target):
            self.folder.mkdir(parents=True, exist_ok=True)
            # The lock is shared by all processes of this machine, and released when its owner exits or is killed.
            with FileLock(target.with_suffix(".lock")):
                if not self._used(target):
                    self._make_room()
                    self._fetch(name, target)

    def _used(self, path: Path) -> bool:
        """Return whether a shard is in the cache, and if so, update its access time."""
        try:
            os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
        except FileNotFoundError:
            return False
        return True

    def _make_room(self) -> None:
        """Remove the least recently used shards to make room for one more."""
        with FileLock(self.folder / "room.lock"):
            found = []
            for path in self.folder.glob("*.tar"):
                with contextlib.suppress(FileNotFoundError):
                    found.append((path.stat().st_atime_ns, path))
            for _, path in sorted(found)[: max(len(found) - self.keep + 1, 0)]:
                with contextlib.suppress(PermissionError):  # Windows removes no file that another process reads
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
            raise UnreadableError(f"its shard could not be downloaded in {TRIES} attempts: {reason}")
        finally:
            fresh.unlink(missing_ok=True)


def fetched_into(file: int, name: str) -> str | None:
    """Download a shard into an open file. Return the reason if that failed, else None."""
    scheme = name.split("://", 1)[0]
    command = [*_COMMANDS[scheme], name, *(["-"] if scheme == "s3" else [])]
    try:
        ended = subprocess.run(command, stdout=file, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    except OSError as error:
        return f"{command[0]}: {error.strerror}"
    if ended.returncode == 0:
        return None
    said = ended.stderr.decode(errors="replace").strip().splitlines()
    return said[-1][:200] if said else f"the command exited with {ended.returncode}"
