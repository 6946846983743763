"""One process at a time writes into a folder: the others get a sentence, and nothing is mixed or emptied."""

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
    """Hold a folder, which is made, while something is written into it; a thread that holds it may take it again.

    The system gives the lock back when the process ends, however it ends. A folder that did not exist is removed again
    if nothing was written into it.

    Args:
        folder: Where things are written.
        option: The option that named it.
        otherwise: What to do instead of naming another folder with that option.
        wait_s: Seconds to wait for another process, for what is written within a moment.
        keep: Leave the lock's file there. False for folders of the user's own: it goes, unless it was there before.

    Raises:
        DovetailError: Another process holds it, or it cannot be made.
    """
    lock = FileLock(folder.resolve() / LOCK, is_singleton=True)
    made, fresh = not folder.exists(), not (folder / LOCK).exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="flock not supported", category=UserWarning)
            lock.acquire(timeout=wait_s)
    except Timeout:
        otherwise = otherwise or f"name another folder with --{option}"
        raise RunError(
            f"Another process of dovetail writes into {folder}; wait until it has ended, or {otherwise}."
        ) from None
    except (OSError, NotImplementedError) as error:  # network file systems without locks
        if isinstance(error, OSError) and not os.access(folder, os.W_OK | os.X_OK):
            raise ResourceError(f"Cannot write to {folder}: {error.strerror}; name another folder.") from None
        log.warning("%s cannot be locked (%s); let no other process write into it.", folder, error)
    try:
        yield
    finally:
        with suppress(OSError):
            empty = made and [entry.name for entry in folder.iterdir()] == [LOCK]
            if empty or (fresh and not keep):
                (folder / LOCK).unlink(missing_ok=True)  # before it is released: whoever waits for it makes another
            if empty:
                folder.rmdir()
        lock.release()
