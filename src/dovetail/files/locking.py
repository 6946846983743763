"""Locks a folder while a process writes to it, so that two runs cannot mix or delete each other's files."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from dovetail.errors import ResourceError, RunError

LOCK = ".dovetail.lock"

log = logging.getLogger(__name__)


@contextmanager
def in_use(
    folder: Path, *, option: str = "out", otherwise: str = "", wait_s: float = 0, keep: bool = True
) -> Iterator[None]:
    """Create and lock a folder while the block writes to it. The thread that holds the lock may acquire it again.

    The system releases the lock when the process exits for whatever reason. A folder that did not exist before is
    removed again if nothing was written to it.

    Args:
        folder: Folder to write to.
        option: Name of the option that specifies the folder, for the error message.
        otherwise: Advice in the error message. Default: to specify another folder with that option.
        wait_s: Seconds to wait for another process to release the lock.
        keep: Whether to keep the lock file. With False, for folders that belong to the user, it is deleted unless it
            existed before.

    Raises:
        DovetailError: Another process holds the lock, or the folder cannot be created.
    """
    lock = FileLock(folder.resolve() / LOCK, is_singleton=True)
    made, fresh = not folder.exists(), not (folder / LOCK).exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="flock not supported", category=UserWarning)
            lock.acquire(timeout=wait_s)
    except Timeout:
        otherwise = otherwise or f"specify another folder with --{option}"
        raise RunError(
            f"Another dovetail process is writing to {folder}; wait until it has finished, or {otherwise}."
        ) from None
    except (OSError, NotImplementedError) as error:  # network file systems without locks
        if isinstance(error, OSError) and not os.access(folder, os.W_OK | os.X_OK):
            raise ResourceError(f"Cannot write to {folder}: {error.strerror}; specify another folder.") from None
        log.warning("%s cannot be locked (%s); make sure that no other process writes to it.", folder, error)
    try:
        yield
    finally:
        with suppress(OSError):
            empty = made and [entry.name for entry in folder.iterdir()] == [LOCK]
            if empty or (fresh and not keep):
                (folder / LOCK).unlink(missing_ok=True)  # before the release: a waiting process creates another one
            if empty:
                folder.rmdir()
        lock.release()
