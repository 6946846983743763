"""One process at a time writes into a folder: the others get a sentence, and nothing is mixed or emptied."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from dovetail.errors import DovetailError

LOCK = ".dovetail.lock"

log = logging.getLogger(__name__)


@contextmanager
def in_use(folder: Path, *, option: str = "out") -> Iterator[None]:
    """Hold a folder, which is made, while something is written into it.

    The system gives the lock back when the process ends, however it ends; the file of that name stays.

    Args:
        folder: Where things are written.
        option: What it was named with.

    Raises:
        DovetailError: Another process holds it, or it cannot be made.
    """
    lock = FileLock(folder / LOCK)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise DovetailError(
            f"Another process of dovetail writes into {folder}; wait until it has ended, or name another folder with "
            f"--{option}."
        ) from None
    except (OSError, NotImplementedError) as error:  # network file systems without locks
        if isinstance(error, OSError) and not folder.is_dir():
            raise DovetailError(f"Cannot write to {folder}: {error.strerror}; name another folder.") from None
        log.warning("%s cannot be locked (%s); let no other process write into it.", folder, error)
    try:
        yield
    finally:
        lock.release()
