"""The order of images: which images a rank sees at which step is a pure function of the seed and the step."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Protocol

import numpy as np
from torch.utils.data import Sampler

from dovetail.errors import OptionsError, counted
from dovetail.views.random import Purpose, stream

Key = tuple[int, int]  # (epoch, index)


def epoch_order(num_images: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return the permutation [num_images] int64 of one epoch."""
    return stream(Purpose.ORDER, seed=seed, epoch=epoch).permutation(num_images)


class Order(Protocol):
    """The image order of one epoch: `order[first:last]` are the image indices at these positions."""

    def __getitem__(self, places: slice, /) -> np.ndarray:
        """Return image indices as int64."""
        ...


class OrderOf(Protocol):
    """Returns the order of a source's images."""

    def __call__(self, *, seed: int, epoch: int) -> Order:
        """Return the order of one epoch, a pure function of seed and epoch."""
        ...


class ShardOrder:
    """One epoch over shards: the shards are shuffled, then the images within each window of shards.

    Shards are read one after the other, a window at a time, and each image is read once. Positions are computed from
    the sizes of the shards, so only the indices of one window are kept in memory.
    """

    def __init__(self, counts: np.ndarray, *, seed: int, epoch: int, window_images: int) -> None:
        """Shuffle the shards.

        Args:
            counts: Number of images in each shard, [shards] int64.
            seed: Seed of the run.
            epoch: Epoch, counted from 0.
            window_images: Approximate number of images that are shuffled together. A window ends with a shard.
        """
        self._seed, self._epoch = seed, epoch
        shards = stream(Purpose.ORDER, seed=seed, epoch=epoch).permutation(len(counts))
        begins = np.cumsum(counts[shards]) - counts[shards]  # places in the epoch
        self._begins = begins
        # What to add to a position in each shard to get the image's index.
        self._moves = (np.cumsum(counts) - counts)[shards] - begins
        window = begins // max(window_images, 1)
        first = np.flatnonzero(np.diff(window, prepend=-1))
        self._windows = begins[first]  # the position where each window begins
        self._num_images = int(counts.sum())
        self._known: tuple[int, np.ndarray] = (-1, np.empty(0, dtype=np.int64))

    def __getitem__(self, places: slice, /) -> np.ndarray:
        """Return the indices of the images at `places`, a slice without a step."""
        first, last, _ = places.indices(self._num_images)
        parts = [np.empty(0, dtype=np.int64)]
        while first < last:
            window = int(np.searchsorted(self._windows, first, side="right")) - 1
            begin = int(self._windows[window])
            shuffled = self._window(window)
            parts.append(shuffled[first - begin : last - begin])
            first = begin + len(shuffled)
        return np.concatenate(parts)

    def _window(self, window: int) -> np.ndarray:
        """Return the shuffled image indices of a window. The last window is cached."""
        if self._known[0] != window:
            begin = int(self._windows[window])
            end = int(self._windows[window + 1]) if window + 1 < len(self._windows) else self._num_images
            shuffle = stream(Purpose.ORDER, seed=self._seed, epoch=self._epoch, index=window + 1)
            places = begin + shuffle.permutation(end - begin)
            shard = np.searchsorted(self._begins, places, side="right") - 1
            self._known = (window, places + self._moves[shard])
        return self._known[1]


class StepSampler(Sampler[list[Key]]):
    """Yields the (epoch, index) pairs of this rank, step by step.

    Every epoch shuffles all images and cuts them into global batches; the incomplete last batch is dropped. The global
    batch of a step does not depend on the number of ranks: rank r takes the r-th of `world_size` equal parts. With
    `micro_batches`, a rank's part is yielded as that many equal lists, one after another.
    """

    def __init__(
        self,
        num_images: int,
        global_batch: int,
        *,
        seed: int,
        total_steps: int,
        start_step: int = 0,
        rank: int = 0,
        world_size: int = 1,
        micro_batches: int = 1,
        order_of: OrderOf | None = None,
    ) -> None:
        """Check the sizes and create the sampler.

        Args:
            num_images: Number of images in the source.
            global_batch: Images in one optimiser step, over all ranks and micro-batches.
            seed: Seed of the run.
            total_steps: Optimiser steps of the whole run.
            start_step: First step to yield, for a resumed run.
            rank: Rank of this process.
            world_size: Number of processes.
            micro_batches: Number of lists that this rank's part of a step is split into (gradient accumulation).
            order_of: Returns the image order of an epoch. Default: `epoch_order`.

        Raises:
            OptionsError: There are fewer images than a batch needs, or the batch does not divide evenly.
        """
        self._steps_per_epoch = steps_per_epoch(num_images, global_batch)
        if global_batch % (world_size * micro_batches):
            pieces = f"{world_size} devices" + (f" x {micro_batches} micro-batches" if micro_batches > 1 else "")
            near = global_batch - global_batch % (world_size * micro_batches) or world_size * micro_batches
            raise OptionsError(f"A batch size of {global_batch} is not divisible by {pieces}; use --batch-size {near}.")
        self._num_images = num_images
        self._global_batch = global_batch
        self._seed = seed
        self._steps = range(start_step, total_steps)
        self._rank = rank
        self._world_size = world_size
        self._micro_batches = micro_batches
        self._order_of = order_of or partial(epoch_order, num_images)

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one epoch."""
        return self._steps_per_epoch

    def __len__(self) -> int:
        return len(self._steps) * self._micro_batches

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = -1
        order: Order = np.empty(0, dtype=np.int64)
        share = self._global_batch // self._world_size
        micro = share // self._micro_batches
        for step in self._steps:
            if step // self._steps_per_epoch != epoch:
                epoch = step // self._steps_per_epoch
                order = self._order_of(seed=self._seed, epoch=epoch)
            first = step % self._steps_per_epoch * self._global_batch + self._rank * share
            for start in range(first, first + share, micro):
                yield [(epoch, int(index)) for index in order[start : start + micro]]


def steps_per_epoch(num_images: int, global_batch: int) -> int:
    """Return the number of full batches in an epoch. Raise `OptionsError` if there is none."""
    if num_images < global_batch:
        raise OptionsError(
            f"Found {counted(num_images, 'image')}, but a batch needs {global_batch}; "
            f"use --batch-size {num_images} or more images."
        )
    return num_images // global_batch
