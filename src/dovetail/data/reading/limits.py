"""Checks that the machine has enough shared memory and open files for the workers, which would hang otherwise."""

from __future__ import annotations

import logging
import os

from dovetail.errors import ResourceError

SHARED = "/dev/shm"
SHARE = 0.9  # fraction of the free shared memory that batches may use
FILES_EACH = 16  # pipes and queues of one worker

log = logging.getLogger(__name__)


def batches_ahead(most: int, *, batch_bytes: int, processes: int) -> int:
    """Return how many batches each worker may prefetch, so that all of them fit into shared memory.

    Args:
        most: Upper bound.
        batch_bytes: Size of the pixels of one batch, in bytes.
        processes: Number of workers on this machine.

    Raises:
        ResourceError: Shared memory is too small for one prefetched batch per worker and the batch in use.
    """
    try:
        status = os.statvfs(SHARED)
    except (OSError, AttributeError):  # another system
        return most
    free, each = status.f_bavail * status.f_frsize, max(batch_bytes * processes, 1)
    fitting = int(SHARE * free / each) - 1
    if fitting < 1:
        raise ResourceError(
            f"Shared memory ({SHARED}) has {free / 2**20:.0f} MiB free, but data loading needs about "
            f"{2 * each / SHARE / 2**20:.0f} MiB; increase it (docker run --shm-size 8g), or use fewer --workers or a "
            "smaller --batch-size."
        )
    if fitting < most:
        log.warning(
            "Shared memory (%s) is small: each worker prefetches %d batches instead of %d.", SHARED, fitting, most
        )
    return min(most, fitting)


def check_open_files(*, processes: int, ahead: int, tensors: int) -> None:
    """Raise this process's limit of open files to what data loading needs: one for every shared tensor.

    Args:
        processes: Number of workers of this process.
        ahead: Number of batches that each worker prefetches.
        tensors: Number of tensors in a batch.

    Raises:
        ResourceError: The system does not allow that many open files.
    """
    try:
        import resource
    except ImportError:  # Windows shares tensors in another way
        return
    needed = 64 + processes * (FILES_EACH + (ahead + 1) * tensors)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ResourceError(
            f"At most {hard} files may be open at once, but data loading needs about {needed}; raise the limit "
            f"(ulimit -n {needed}) or use fewer --workers."
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
