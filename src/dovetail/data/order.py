"""Which photographs a rank sees at which step: a pure function of the seed, so that resuming is a number."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler

from dovetail.errors import DovetailError
from dovetail.views.random import Purpose, stream

Key = tuple[int, int]  # (epoch, index)


def epoch_order(num_images: int, *, seed: int, epoch: int) -> np.ndarray:
    """Return the permutation [num_images] int64 of one epoch."""
    return stream(Purpose.ORDER, seed=seed, epoch=epoch).permutation(num_images)


class StepSampler(Sampler[list[Key]]):
    """Yields, step by step, the (epoch, index) pairs of this rank.

    Every epoch is a new permutation, cut into global batches; what does not fill a batch at its end is left out.
    The global batch of a step does not depend on the number of ranks: rank r takes the r-th of `world_size` equal
    runs of it. With `micro_batches` a rank's part comes in that many equal lists, one after another.
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
    ) -> None:
        """Check that the sizes fit.

        Args:
            num_images: Of the source.
            global_batch: Photographs in one optimiser step, over all ranks and micro-batches.
            seed: Of the run.
            total_steps: Of the whole run.
            start_step: Where to go on; steps before it are not yielded.
            rank: This process.
            world_size: Number of processes.
            micro_batches: Lists that one step's part is split into (gradient accumulation).

        Raises:
            DovetailError: There are fewer images than a batch takes, or the batch does not divide evenly.
        """
        self._steps_per_epoch = steps_per_epoch(num_images, global_batch)
        if global_batch % (world_size * micro_batches):
            pieces = f"{world_size} devices" + (f" x {micro_batches} micro-batches" if micro_batches > 1 else "")
            near = global_batch - global_batch % (world_size * micro_batches) or world_size * micro_batches
            raise DovetailError(f"A batch of {global_batch} does not divide over {pieces}; use --batch-size {near}.")
        self._num_images = num_images
        self._global_batch = global_batch
        self._seed = seed
        self._steps = range(start_step, total_steps)
        self._rank = rank
        self._world_size = world_size
        self._micro_batches = micro_batches

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one epoch."""
        return self._steps_per_epoch

    def __len__(self) -> int:
        return len(self._steps) * self._micro_batches

    def __iter__(self) -> Iterator[list[Key]]:
        epoch, order = -1, np.empty(0, dtype=np.int64)
        share = self._global_batch // self._world_size
        micro = share // self._micro_batches
        for step in self._steps:
            if step // self._steps_per_epoch != epoch:
                epoch = step // self._steps_per_epoch
                order = epoch_order(self._num_images, seed=self._seed, epoch=epoch)
            first = step % self._steps_per_epoch * self._global_batch + self._rank * share
            for start in range(first, first + share, micro):
                yield [(epoch, int(index)) for index in order[start : start + micro]]


def steps_per_epoch(num_images: int, global_batch: int) -> int:
    """Return the full batches in an epoch; raise `DovetailError` if there is not one."""
    if num_images < global_batch:
        raise DovetailError(
            f"{num_images} images are too few for a batch of {global_batch}; use --batch-size {num_images} or more "
            "images."
        )
    return num_images // global_batch
