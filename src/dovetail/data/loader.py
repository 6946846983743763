"""From a source of images to batches of views, in loading processes."""

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

import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from dovetail.data.order import Key, StepSampler
from dovetail.data.reading.deadline import deadline
from dovetail.data.reading.decode import UnreadableError
from dovetail.data.reading.room import batches_ahead, check_open_files
from dovetail.data.reading.skipped import SkippedLog
from dovetail.data.reading.values import all_levels, use_values, value_range
from dovetail.data.reading.watch import (
    ReadingWatch,
    asked_to_stop,
    can_fork,
    end_with_parent,
    leave_deaths_to_us,
    next_of,
)
from dovetail.data.sources import ImageSource
from dovetail.errors import ResourceError, StoppedWaiting
from dovetail.views.batch import Sample, Skipped, ViewBatch, collate, render
from dovetail.views.plan import ViewPlan
from dovetail.views.random import Purpose, stream
from dovetail.views.sampling import draw_views, needed_shrink

IMAGE_SECONDS = 60.0
BATCH_SECONDS = 600.0
POLL_SECONDS = 1.0
AHEAD_BATCHES = 4  # that each process loads before they are wanted
TENSORS, TENSORS_EACH = 4, 4  # in a batch: of its own, and of each view, about
MOST_REQUESTS = 3  # to end, without a batch in between: more come from somebody who wants the processes gone
_REPLACEMENT_TRIES = 64


class ViewDataset(Dataset[Sample]):
    """The views of every image of a source, as a pure function of (seed, epoch, index).

    In the place of an unreadable image comes another one, drawn from the same three numbers.
    """

    def __init__(
        self,
        source: ImageSource,
        plan: ViewPlan,
        *,
        seed: int,
        in_channels: int = 3,
        image_seconds: float = IMAGE_SECONDS,
    ) -> None:
        """Keep what is needed; nothing is read.

        Args:
            source: Of images.
            plan: The views wanted.
            seed: Of the run.
            in_channels: Of the pixels.
            image_seconds: What takes longer to read counts as unreadable.
        """
        self.image_seconds = image_seconds
        self.value_range = value_range()  # of loading processes, too
        self._watch: ReadingWatch | None = None
        self._source = source
        self._plan = plan
        self._seed = seed
        self._in_channels = in_channels
        self._unreadable: dict[int, Skipped] = {}  # a cache only: it never changes what is returned

    def __len__(self) -> int:
        return self._source.num_images

    def watch(self, num_workers: int) -> ReadingWatch:
        """Return what tells, from now on, what so many loading processes read; to be called before they start."""
        self._watch = ReadingWatch(num_workers)
        return self._watch

    def give_up(self, index: int, reason: str) -> None:
        """Count image `index` as unreadable."""
        self._unreadable[index] = Skipped(index, self._source.name(index), reason)

    def __getitem__(self, key: Key) -> Sample:
        """Return the views of image `index` in `epoch`, with `key` = (epoch, index)."""
        epoch, index = key
        skipped: list[Skipped] = []
        for candidate in self._candidates(epoch, index):
            try:
                sample = self._read(epoch, index, candidate)
            except (UnreadableError, MemoryError) as error:
                self.give_up(candidate, str(error) or "there is not enough memory for it")
                skipped.append(self._unreadable[candidate])
            else:
                return replace(sample, skipped=tuple(skipped))
        # Workers do not raise: the log in the main process says what happened, in one sentence.
        return replace(self._blank(epoch, index), skipped=tuple(skipped))

    def _candidates(self, epoch: int, index: int) -> Iterator[int]:
        """Yield `index`, then the images to take instead."""
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
            photograph = self._source.open(candidate, self._in_channels)
            width, height = photograph.width_px, photograph.height_px
            rng = stream(Purpose.VIEWS, seed=self._seed, epoch=epoch, index=index)
            draw = draw_views(rng, self._plan, height=height, width=width, epoch=epoch)
            pixels = photograph.decode(needed_shrink(draw, self._plan))
        if value_range() is not None:  # those of 8 bits, too, as a batch has one type
            pixels = pixels.float()
        return render(pixels, draw, self._plan, source_px=(width, height), epoch=epoch, index=index, used=candidate)

    def _blank(self, epoch: int, index: int) -> Sample:
        """Return black views, which only say that nothing could be read."""
        rng = stream(Purpose.VIEWS, seed=self._seed, epoch=epoch, index=index)
        draw = draw_views(rng, self._plan, height=1, width=1, epoch=epoch)
        black = torch.zeros(self._in_channels, 1, 1, dtype=torch.uint8 if value_range() is None else torch.float32)
        return render(black, draw, self._plan, source_px=(1, 1), epoch=epoch, index=index, used=-1)


class ViewLoader:
    """Batches of views from the start step to the end of the run, in one iteration over all epochs.

    Attributes:
        plan: The plan of the views, for `to_views`.
        steps_per_epoch: Optimiser steps in one epoch.
        skipped: What could not be read so far.
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
        """See `make_loader`; where loading processes give nothing for `batch_seconds`, the run ends.

        Each process reads `ahead` batches before they are wanted.
        """
        self._batch_seconds = batch_seconds
        self._stop_asked: Callable[[], bool] = lambda: False
        self._killed: Counter[int] = Counter()  # processes, by the image that they read
        self._requests = 0  # to end that came to loading processes since the last batch
        self._poll_seconds = min(POLL_SECONDS, dataset.image_seconds, batch_seconds)
        self._dataset = dataset
        self._sampler = sampler
        # What a decoder never comes back from can only be left behind together with its process.
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
        """Ask this about every second while a batch is waited for, and raise `StoppedWaiting` when it says so."""
        self._stop_asked = asked

    def __iter__(self) -> Iterator[ViewBatch]:
        """Yield batches, and start again after the last one where a process ended with its image, or was asked to.

        Raises:
            DovetailError: Most images cannot be read, or a worker hangs or is killed.
        """
        done = 0
        while done < len(self):
            watch = self._dataset.watch(self._num_processes)
            for batch in self._batches(done, watch):
                self.skipped.record(batch)
                yield batch
                done += 1

    def _batches(self, done: int, watch: ReadingWatch) -> Iterator[ViewBatch]:
        """Yield the batches after the first `done`, up to one that has to be loaded again."""
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
                raise self._lost(error) from error
            yield batch
            self._requests = 0

    def _next(self, batches: Iterator[ViewBatch], workers: list[BaseProcess]) -> ViewBatch:
        """Return the next batch; raise `RuntimeError` where a process ended, or gave nothing for too long."""
        waited = 0.0  # not by the clock: see `dovetail.data.reading.watch`
        while True:
            try:
                return next_of(batches, workers)
            except RuntimeError as error:
                waited += self._poll_seconds
                if self._stop_asked():
                    for worker in workers:  # what hangs would hold up the end of this process, too
                        worker.kill()
                    raise StoppedWaiting from error
                if "timed out" not in str(error) or waited >= self._batch_seconds:
                    raise

    def _must_start_again(self, workers: list[BaseProcess], watch: ReadingWatch) -> bool:
        """Give up the images that loading processes are stuck with or died of, and those that two were killed with.

        Return whether the batch can be loaded again: nothing more is lost where a process was killed or asked to end.
        """
        lost = watch.lost(workers)
        killed = watch.killed(workers)
        for index in killed:
            if index is not None:
                self._killed[index] += 1
                if self._killed[index] > 1:
                    lost[index] = "two processes were killed while they read it (SIGKILL), as for want of memory"
        for index, reason in lost.items():
            self._dataset.give_up(index, reason)
        if lost or any(index is not None for index in killed):
            return True
        if not killed and not asked_to_stop(workers):
            return False
        self._requests += 1
        return self._requests <= MOST_REQUESTS

    def _started(self, done: int) -> Any:
        """Return an iterator over the batches after the first `done`, with processes of its own that have started."""
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
                generator=torch.Generator(),  # starting again must not draw from the training's random numbers
            )
        )
        leave_deaths_to_us()
        return batches

    def _lost(self, error: RuntimeError) -> Exception:
        """Return the sentence on a worker that gives nothing any more; other errors as they are."""
        text = str(error)
        if "timed out" in text:
            return ResourceError(
                f"No images came from the loading processes for {self._batch_seconds:g} seconds; check the disk that "
                "they are on and go on with --resume."
            )
        if "DataLoader worker (pid" in text:
            return ResourceError(
                f"A loading process ended ({text.splitlines()[0].rstrip('.')}), most often for want of memory; go on "
                "with --resume, and with fewer --workers or fewer other programs beside it."
            )
        return error


class _Rest(Sampler[list[Key]]):
    """A sampler's lists after the first `done`."""

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
) -> ViewLoader:
    """Return the loader of this rank's batches; the number of workers changes nothing but the speed.

    Args:
        source: Of images; see `open_source`.
        plan: The views wanted; `to_views` needs the same one.
        global_batch: Images in one optimiser step, over all ranks and micro-batches.
        total_steps: Optimiser steps of the whole run.
        seed: Of the run.
        start_step: Where a resumed run goes on.
        rank: This process.
        world_size: Number of processes.
        micro_batches: Batches that this rank's part of a step comes in.
        in_channels: Of the pixels.
        num_workers: Loading processes, each of which reads several batches ahead. With 0, one forked process reads one
            batch ahead, so `source` need not be picklable. Where processes cannot fork (`can_fork`), this process
            reads, and a decoder that hangs blocks the run.
        skipped_file: Where unreadable images are named; None keeps only their count.

    Raises:
        DovetailError: There are fewer images than a batch takes, or the batch does not divide evenly.
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
    dataset = ViewDataset(source, plan, seed=seed, in_channels=in_channels)
    skipped = SkippedLog(skipped_file, source.num_images)
    processes = num_workers or int(can_fork())
    ahead = 1
    if processes:
        beside = int(os.environ.get("LOCAL_WORLD_SIZE", world_size))  # training processes on this machine
        pixels = sum(view.size_px**2 for view in plan.views)
        images = global_batch // (world_size * micro_batches)
        most = AHEAD_BATCHES if num_workers else 1
        batch_bytes = images * in_channels * pixels
        ahead = batches_ahead(most, batch_bytes=batch_bytes, processes=processes * beside)
        check_open_files(processes=processes, ahead=ahead, tensors=TENSORS + TENSORS_EACH * len(plan.views))
    return ViewLoader(dataset, sampler, plan=plan, num_workers=num_workers, skipped=skipped, ahead=ahead)


def _start_worker(_: int) -> None:
    # Ctrl-C reaches the whole process group; the main process ends the workers after it has saved.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # SLURM's question to the run comes to every process of it
    end_with_parent()
    torch.set_num_threads(1)
    worker = get_worker_info()
    if worker is not None and isinstance(worker.dataset, ViewDataset):
        use_values(worker.dataset.value_range)
