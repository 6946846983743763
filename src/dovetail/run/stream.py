"""Trains on streaming datasets: their images are written to shards in the run folder once, and read from there.

A stream has no random access and no length, so its images cannot be shuffled over epochs or read again from a step on.
A run that was killed while it wrote them writes them again; a resumed run never reads the stream.
"""

from __future__ import annotations

import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from dovetail.data.masks import FELZENSZWALB, INDEX, MASKS
from dovetail.data.shards.names import SIZES
from dovetail.data.shards.write import write_stream
from dovetail.data.streams import items_of, stream_in
from dovetail.errors import DataError, ResourceError, RunError, counted, tell
from dovetail.run.folder import STREAM, empty
from dovetail.run.options import PretrainOptions
from dovetail.views.plan import ViewPlan

IMAGES_PER_SHARD = 1000
RESERVE_BYTES = 1 << 30  # left free on the disk: a stream may be endless
PATIENCE_S = 1800.0  # of the other processes, if nothing is written


def is_stream(data: Any) -> bool:
    """Return whether `data` is a streaming dataset."""
    return stream_in(data) is not None


def is_written(out: Path) -> bool:
    """Return whether the run folder contains all images of a stream."""
    return (out / STREAM / SIZES).is_file()


def with_own_images(options: PretrainOptions, out: Path) -> PretrainOptions:
    """Return the options of a resumed run, with its own shards if it was started from a stream.

    Raises:
        RunError: A stream is specified, but the run was not started from one.
    """
    data = options.data
    if is_stream(data) and not is_written(out):
        raise RunError(
            f"The run in {out} was not started from a streaming dataset; omit data, or specify the images that it was "
            "started from."
        )
    moved = isinstance(data, str) and Path(data).name == STREAM and not Path(data).exists() and is_written(out)
    return options.changed(data=str(out / STREAM)) if moved or is_stream(data) else options


def check_needs(plan: ViewPlan, masks: str | Path | None) -> None:
    """Raise `DataError` if a recipe needs more of a stream than its images, which are all that is written."""
    needed = [name for name in plan.side if name != INDEX]
    if plan.segments is not None and str(masks) != FELZENSZWALB:
        needed.append(MASKS)
    if needed:
        raise DataError(
            f"The method needs {' and '.join(needed)} beside the images, but only the images of a streaming dataset "
            f"are kept; pass a dataset with random access{f', or masks={FELZENSZWALB!r}' * (MASKS in needed)}."
        )


def stored(
    options: PretrainOptions, out: Path, *, most: int | None, first: bool, requeued: bool = False
) -> PretrainOptions:
    """Write the images of the stream in `options` to the folder of a new run, and return the options with that folder.

    With `overwrite`, the run folder is emptied first. Processes other than the first one wait for the images.

    Args:
        options: Options whose `data` is a stream. The other ones have been checked.
        out: Run folder.
        most: Number of images that the run needs, or None for all.
        first: Whether this is the first process.
        requeued: Whether the same command was started before, so that images that are already there are those of the
            stream.

    Raises:
        DovetailError: The stream fails or has no images, the disk is full, or the folder has the images of a stream.
    """
    if not first:
        wait_for(out)
    elif not (requeued and is_written(out)):
        check_free(options, out)
        if options.overwrite:
            empty(out)
        write(options, out / STREAM, most=most)
    return options.changed(data=str(out / STREAM), overwrite=False)


def check_free(options: PretrainOptions, out: Path) -> None:
    """Raise `RunError` if the run folder has the images of a stream that must not be replaced."""
    if not is_written(out):
        return
    folder = out / STREAM
    if not options.overwrite:
        raise RunError(
            f"{folder} already contains the images of a stream, from a run that failed before its first step; specify "
            f"data={str(folder)!r} to train on them, or add overwrite=True to read the stream again."
        )
    if num_processes() > 1:  # the others would take the old images for the new ones
        raise RunError(
            f"{folder} contains the images of a stream, which cannot be replaced by several processes; delete {out}, "
            "or specify another folder."
        )


def num_processes() -> int:
    """Return the number of processes that the launcher started together, or 1 without one."""
    return int(next((os.environ[name] for name in ("WORLD_SIZE", "SLURM_NTASKS") if name in os.environ), "1"))


def write(options: PretrainOptions, folder: Path, *, most: int | None) -> None:
    """Write the images of the stream, and print how many there are so far. On failure, the folder is removed."""
    limit = "" if most is None else f", or up to the {counted(most, 'image')} that the run uses"
    tell(f"Writing the images of the streaming dataset to {folder}, until its end{limit}.")

    def told(done: int) -> None:
        tell(f"{counted(done, 'image')} so far")
        free = shutil.disk_usage(folder).free
        if free < RESERVE_BYTES:
            raise ResourceError(
                f"The disk of {folder} has only {free / 1e9:.1f} GB left after {done:,} images of the stream; free "
                "disk space, or limit the images with data=stream.take(NUMBER) or max_steps."
            )

    shutil.rmtree(folder, ignore_errors=True)  # of a run that was killed
    items = items_of(stream_in(options.data), seed=options.seed)
    try:
        tell(write_stream(items, folder, images_per_shard=IMAGES_PER_SHARD, progress=told, most=most))
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def wait_for(out: Path, *, patience_s: float = PATIENCE_S, pause_s: float = 1.0) -> None:
    """Wait until the first process has written the images.

    Raises:
        RunError: Nothing was written for `patience_s` seconds.
    """
    before, since = -1, time.monotonic()
    while not is_written(out):
        now = written_bytes(out / STREAM)
        if now != before:
            before, since = now, time.monotonic()
        elif time.monotonic() - since > patience_s:
            raise RunError(
                f"The first process has written no images to {out / STREAM} for {patience_s / 60:.0f} minutes; check "
                "its output, and that all nodes share this folder."
            )
        time.sleep(pause_s)


def written_bytes(folder: Path) -> int:
    """Return the size of the files in a folder that another process is writing to."""
    total = 0
    with suppress(OSError):
        for entry in list(os.scandir(folder)):
            with suppress(OSError):
                total += entry.stat().st_size
    return total
