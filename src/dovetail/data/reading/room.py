"""Whether a machine has what loading processes need: shared memory and open files. Without, they would hang."""

from __future__ import annotations

import logging
import os

from dovetail.errors import ResourceError

SHARED = "/dev/shm"
SHARE = 0.9  # of what is free, that batches may take
FILES_EACH = 16  # pipes and queues of one loading process

log = logging.getLogger(__name__)


def batches_ahead(most: int, *, batch_bytes: int, processes: int) -> int:
    """Return how many batches each loading process may read ahead, so that all have room in shared memory.

    Args:
        most: Where there is room for all.
        batch_bytes: Bytes of the pixels of one batch.
        processes: Loading processes on this machine.

    Raises:
        ResourceError: There is room for less than one batch ahead of each and the one that is used.
    """
    try:
        status = os.statvfs(SHARED)
    except (OSError, AttributeError):  # another system
        return most
    free, each = status.f_bavail * status.f_frsize, max(batch_bytes * processes, 1)
    fitting = int(SHARE * free / each) - 1
    if fitting < 1:
        raise ResourceError(
            f"Shared memory ({SHARED}) has {free / 2**20:.0f} MiB free, and loading needs about "
            f"{2 * each / SHARE / 2**20:.0f} MiB; make it larger (docker run --shm-size 8g), or give fewer --workers "
            "or a smaller --batch-size."
        )
    if fitting < most:
        log.warning("Shared memory (%s) has room for %d batches a loading process, not %d.", SHARED, fitting, most)
    return min(most, fitting)


def check_open_files(*, processes: int, ahead: int, tensors: int) -> None:
    """Let this process open as many files as loading needs: every tensor that is handed over is one.

    Args:
        processes: Loading processes of this one.
        ahead: Batches that each reads ahead.
        tensors: In a batch.

    Raises:
        ResourceError: The system allows fewer.
    """
    try:
        import resource
    except ImportError:  # Windows hands tensors over otherwise
        return
    needed = 64 + processes * (FILES_EACH + (ahead + 1) * tensors)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ResourceError(
            f"At most {hard} files may be open at once, and loading needs about {needed}; raise the limit "
            f"(ulimit -n {needed}) or give fewer --workers."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
