"""Loads batches of views from an image source, in worker processes."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from dovetail.data.masks import Masks, side_tensors
from dovetail.data.order import Key, StepSampler
from dovetail.data.reading.deadline import deadline
from dovetail.data.reading.decode import LazyImage, UnreadableError
from dovetail.data.reading.limits import batches_ahead, check_open_files
from dovetail.data.reading.skipped import SkippedLog
from dovetail.data.reading.values import all_levels, use_values, value_range
from dovetail.data.reading.watch import (
    ReadingWatch,
    asked_to_stop,
    can_fork,
    end,
    end_with_parent,
    next_of,
    remove_worker_death_handler,
)
from dovetail.data.sources import ImageSource
from dovetail.errors import DataError, ResourceError, StoppedWaiting
from dovetail.views.batch import Sample, Skipped, ViewBatch, collate, render
from dovetail.views.plan import ViewPlan
from dovetail.views.random import Purpose, stream
from dovetail.views.sampling import draw_views, needed_shrink

IMAGE_SECONDS = 60.0
BATCH_SECONDS = 600.0
POLL_SECONDS = 1.0
AHEAD_BATCHES = 4  # batches that each worker prefetches
TENSORS, TENSORS_EACH = 4, 4  # tensors in a batch: a fixed number, and about so many for each view
MOST_REQUESTS = 3  # requests to stop without a batch in between; after more, somebody wants the workers gone
_REPLACEMENT_TRIES = 64


class ViewDataset(Dataset[Sample]):
    """The views of every image of a source, as a pure function of (seed, epoch, index).

    An unreadable image is replaced by another one, which is drawn from the same three numbers.
    """

    def __init__(
        self,
        source: ImageSource,
        plan: ViewPlan,
        *,
        seed: int,
        in_channels: int = 3,
        image_seconds: float = IMAGE_SECONDS,
        masks: Masks | None = None,
    ) -> None:
        """Create the dataset without reading any image.

        Args:
            source: Image source.
            plan: Views to draw from each image.
            seed: Seed of the run.
            in_channels: Number of channels that images are decoded with.
            image_seconds: An image that takes longer to read counts as unreadable.
            masks: Masks of the images, for a plan with segments.

        Raises:
            DataError: The plan needs masks, but there are none.
        """
        if plan.segments is not None and masks is None:
            raise DataError("The views have segments, which need masks; pass masks=open_masks(...).")
        self._masks = masks
        self.image_seconds = image_seconds
        self.value_range = value_range()  # workers use it, too
        self._watch: ReadingWatch | None = None
        self._source = source
        self._plan = plan
        self._seed = seed
        self._in_channels = in_channels
        self._unreadable: dict[int, Skipped] = {}  # a cache only: it never changes what is returned

    def __len__(self) -> int:
        return self._source.num_images

    def watch(self, num_workers: int) -> ReadingWatch:
        """Return a watch over what the workers read. Call this before they start."""
        self._watch = ReadingWatch(num_workers)
        return self._watch

    def give_up(self, index: int, reason: str) -> None:
        """Mark image `index` as unreadable."""
        self._unreadable[index] = Skipped(index, self._source.name(index), reason)

    def __getitem__(self, key: Key) -> Sample:
        """Return the views of image `index` in `epoch`, with `key` = (epoch, index)."""
        epoch, index = key
        skipped: list[Skipped] = []
        for candidate in self._candidates(epoch, index):
            try:
                sample = self._read(epoch, index, candidate)
            except (UnreadableError, MemoryError) as error:
                self.give_up(candidate, str(error) or "out of memory")
                skipped.append(self._unreadable[candidate])
            else:
                return replace(sample, skipped=tuple(skipped))
        # Workers do not raise: the log in the main process reports what happened in one sentence.
        return replace(self._blank(epoch, index), skipped=tuple(skipped))

    def _candidates(self, epoch: int, index: int) -> Iterator[int]:
        """Yield `index`, then its replacements."""
        yield index
        rng = stream(Purpose.REPLACEMENT, seed=self._seed, epoch=epoch, index=index)
        for _ in range(_REPLACEMENT_TRIES):
            yield int(rng.integers(self._source.num_images))

    def _read(self, epoch: int, index: int, candidate: int) -> Sample:
        if candidate in self._unreadable:
            raise UnreadableError(self._unreadable[candidate].reason)
        self._source.fetch(candidate)
        watched = nullcontext() if self._watch is None else self._watch.reading(candidate)
        with watched, deadline(self.image_seconds), all_levels():
            image = self._source.open(candidate, self._in_channels)
            width, height = image.width_px, image.height_px
            rng = stream(Purpose.VIEWS, seed=self._seed, epoch=epoch, index=index)
            draw = draw_views(rng, self._plan, height=height, width=width, epoch=epoch)
            pixels = image.decode(needed_shrink(draw, self._plan))
            labels = None if self._plan.segments is None else self._masks_of(candidate, image)
            side = side_tensors(self._plan, image, candidate)
        if value_range() is not None:  # 8-bit images, too: a batch has one dtype
            pixels = pixels.float()
        numbers = {"epoch": epoch, "index": index, "used": candidate}
        return render(pixels, draw, self._plan, source_px=(width, height), labels=labels, side=side, **numbers)

    def _masks_of(self, index: int, image: LazyImage) -> np.ndarray:
        assert self._masks is not None  # checked at the beginning
        return self._masks.labels(index, image)

    def _blank(self, epoch: int, index: int) -> Sample:
        """Return black views, which stand for an image that could not be read."""
        rng = stream(Purpose.VIEWS, seed=self._seed, epoch=epoch, index=index)
        draw = draw_views(rng, self._plan, height=1, width=1, epoch=epoch)
        black = torch.zeros(self._in_channels, 1, 1, dtype=torch.uint8 if value_range() is None else torch.float32)
        labels = None if self._plan.segments is None else np.zeros((1, 1), dtype=np.int32)
        return render(black, draw, self._plan, source_px=(1, 1), labels=labels, epoch=epoch, index=index, used=-1)


class ViewLoader:
    """Yields batches of views from the start step to the end of the run, over all epochs.

    Attributes:
        plan: Plan of the views, for `to_views`.
        steps_per_epoch: Optimiser steps in one epoch.
        skipped: Log of the images that could not be read so far.
    """

    def __init__(
        self,
        dataset: ViewDataset,
        sampler: StepSampler,
        *,
        plan: ViewPlan,
        num_workers: int,
        skipped: SkippedLog,
        batch_seconds: float = BATCH_SECONDS,
        ahead: int = AHEAD_BATCHES,
    ) -> None:
        """See `make_loader`. The run ends if the workers return no batch for `batch_seconds`.

        Each worker prefetches `ahead` batches.
        """
        self._batch_seconds = batch_seconds
        self._stop_asked: Callable[[], bool] = lambda: False
        self._killed: Counter[int] = Counter()  # number of killed workers by the image that they were reading
        self._requests = 0  # requests to stop that workers received since the last batch
        self._poll_seconds = min(POLL_SECONDS, dataset.image_seconds, batch_seconds)
        self._dataset = dataset
        self._sampler = sampler
        # A decoder that hangs can only be stopped together with its process.
        alone = num_workers == 0 and can_fork()
        self._num_processes = 1 if alone else num_workers
        self._ahead = (1 if alone else ahead) if self._num_processes else None
        self._context = "fork" if alone else None
        self.plan = plan
        self.steps_per_epoch = sampler.steps_per_epoch
        self.skipped = skipped

    def __len__(self) -> int:
        return len(self._sampler)

    def stop_when(self, asked: Callable[[], bool]) -> None:
        """Call `asked` about every second while waiting for a batch, and raise `StoppedWaiting` if it returns True."""
        self._stop_asked = asked

    def __iter__(self) -> Iterator[ViewBatch]:
        """Yield batches. Workers are restarted after the last batch if one of them crashed or was asked to stop.

        Raises:
            DovetailError: Most images cannot be read, or a worker hangs or was killed.
        """
        done = 0
        while done < len(self):
            watch = self._dataset.watch(self._num_processes)
            for batch in self._batches(done, watch):
                self.skipped.record(batch)
                yield batch
                done += 1

    def _batches(self, done: int, watch: ReadingWatch) -> Iterator[ViewBatch]:
        """Yield the batches after the first `done`, until one has to be loaded again."""
        batches = self._started(done)
        workers: list[BaseProcess] = batches._workers if self._num_processes else []
        while True:
            try:
                with watch.looking(workers, seconds=self._dataset.image_seconds, poll=self._poll_seconds):
                    batch = self._next(batches, workers)
            except StopIteration:
                return
            except RuntimeError as error:
                if self._must_start_again(workers, watch):
                    return
                end(workers)
                raise self._lost(error) from error
            yield batch
            self._requests = 0

    def _next(self, batches: Iterator[ViewBatch], workers: list[BaseProcess]) -> ViewBatch:
        """Return the next batch. Raise `RuntimeError` if a worker died, or returned nothing for too long."""
        waited = 0.0  # not by the clock: see `dovetail.data.reading.watch`
        while True:
            try:
                return next_of(batches, workers)
            except RuntimeError as error:
                waited += self._poll_seconds
                if self._stop_asked():
                    end(workers)
                    raise StoppedWaiting from error
                if "timed out" not in str(error) or waited >= self._batch_seconds:
                    raise

    def _must_start_again(self, workers: list[BaseProcess], watch: ReadingWatch) -> bool:
        """Give up the images that made a worker hang or crash, and images during which two workers were killed.

        Returns:
            Whether the batch can be loaded again.
        """
        lost = watch.lost(workers)
        killed = watch.killed(workers)
        for index in killed:
            if index is not None:
                self._killed[index] += 1
                if self._killed[index] > 1:
                    lost[index] = "two workers were killed while reading it (SIGKILL), probably out of memory"
        for index, reason in lost.items():
            self._dataset.give_up(index, reason)
        if lost or any(index is not None for index in killed):
            return True
        if not killed and not asked_to_stop(workers):
            return False
        self._requests += 1
        return self._requests <= MOST_REQUESTS

    def _started(self, done: int) -> Any:
        """Return an iterator over the batches after the first `done`, with newly started workers."""
        batches = iter(
            DataLoader(
                self._dataset,
                batch_sampler=_Rest(self._sampler, done),
                num_workers=self._num_processes,
                collate_fn=collate,
                pin_memory=torch.cuda.is_available(),
                prefetch_factor=self._ahead,
                worker_init_fn=_start_worker,
                timeout=self._poll_seconds if self._num_processes else 0,
                multiprocessing_context=self._context,
                generator=torch.Generator(),  # a restart must not draw from the random numbers of the training
            )
        )
        remove_worker_death_handler()
        return batches

    def _lost(self, error: RuntimeError) -> Exception:
        """Return the error for a worker that hangs or died; other errors are returned unchanged."""
        text = str(error)
        if "timed out" in text:
            return ResourceError(
                f"The data loading workers returned no batch for {self._batch_seconds:g} seconds; check the disk that "
                "holds the images, then resume the run with --resume."
            )
        if "DataLoader worker (pid" in text:
            return ResourceError(
                f"A data loading worker died ({text.splitlines()[0].rstrip('.')}), most likely out of memory; resume "
                "the run with --resume and fewer --workers, or close other programs."
            )
        return error


class _Rest(Sampler[list[Key]]):
    """The batches of a sampler after the first `done`."""

    def __init__(self, sampler: StepSampler, done: int) -> None:
        self._sampler = sampler
        self._done = done

    def __len__(self) -> int:
        return len(self._sampler) - self._done

    def __iter__(self) -> Iterator[list[Key]]:
        return islice(iter(self._sampler), self._done, None)


def make_loader(
    source: ImageSource,
    plan: ViewPlan,
    *,
    global_batch: int,
    total_steps: int,
    seed: int,
    start_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    micro_batches: int = 1,
    in_channels: int = 3,
    num_workers: int = 0,
    skipped_file: Path | None = None,
    masks: Masks | None = None,
) -> ViewLoader:
    """Return the loader of this rank's batches. The number of workers changes the speed and nothing else.

    Args:
        source: Image source (see `open_source`).
        plan: Views to draw from each image; `to_views` needs the same plan.
        global_batch: Images in one optimiser step, over all ranks and micro-batches.
        total_steps: Optimiser steps of the whole run.
        seed: Seed of the run.
        start_step: First step, for a resumed run.
        rank: Rank of this process.
        world_size: Number of processes.
        micro_batches: Number of micro-batches in this rank's part of a step.
        in_channels: Number of channels that images are decoded with.
        num_workers: Number of workers, each of which prefetches several batches. With 0, one forked process prefetches
            one batch, so `source` need not be picklable. Where processes cannot fork (`can_fork`), images are read in
            this process, and a decoder that hangs blocks the run.
        skipped_file: File that lists unreadable images. None only counts them.
        masks: Masks of the images (see `open_masks`), for a plan with segments.

    Raises:
        DovetailError: There are fewer images than a batch needs, or the batch does not divide evenly.
    """
    sampler = StepSampler(
        source.num_images,
        global_batch,
        seed=seed,
        total_steps=total_steps,
        start_step=start_step,
        rank=rank,
        world_size=world_size,
        micro_batches=micro_batches,
        order_of=source.order,
    )
    dataset = ViewDataset(source, plan, seed=seed, in_channels=in_channels, masks=masks)
    skipped = SkippedLog(skipped_file, source.num_images)
    processes = num_workers or int(can_fork())
    ahead = 1
    if processes:
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))  # training processes on this machine
        pixels = sum(view.pixels for view in plan.views)
        images = global_batch // (world_size * micro_batches)
        most = AHEAD_BATCHES if num_workers else 1
        batch_bytes = images * (in_channels + 4 * (plan.segments is not None)) * pixels  # masks have 4 bytes
        ahead = batches_ahead(most, batch_bytes=batch_bytes, processes=processes * beside)
        check_open_files(processes=processes, ahead=ahead, tensors=TENSORS + TENSORS_EACH * len(plan.views))
    return ViewLoader(dataset, sampler, plan=plan, num_workers=num_workers, skipped=skipped, ahead=ahead)


def _start_worker(_: int) -> None:
    # Ctrl-C reaches the whole process group; the main process stops the workers after it has saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # SLURM sends it to every process of the job
    end_with_parent()
    torch.set_num_threads(1)
    worker = get_worker_info()
    if worker is not None and isinstance(worker.dataset, ViewDataset):
        use_values(worker.dataset.value_range)
