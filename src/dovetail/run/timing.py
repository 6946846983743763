"""How long a run will take: a few steps on a copy of the learner that is thrown away, before the run begins.

The copy sees a real batch and takes whole optimiser steps. The run's weights, statistics and random numbers stay as
they were, so that a run ends in the same bits with and without it.
"""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import torch

from dovetail.durations import in_words
from dovetail.errors import DovetailError, counted
from dovetail.train.defaults import Settings
from dovetail.train.engine import precision_plugin
from dovetail.train.learner import Learner
from dovetail.train.step import Batches, LearnerModule, ToViews

LEAST_STEPS = 100  # of a shorter run the first line of the log comes as soon
WARM_UP, TIMED = 1, 3
LONG_SECONDS = 3600.0
SLOWER = 1.3  # by which threads must be slower than one of them alone to be named

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimiser step: with the threads at hand, and with one where that was measured."""

    seconds: float
    single_thread: float | None = None


def time_steps(
    learner: Learner, *, batches: Batches, to_views: ToViews, settings: Settings, compare_threads: bool = False
) -> StepTime:
    """Return the time of a step: the median of three after one more, or that of reading a batch where it is longer.

    Args:
        learner: Stays as it is.
        batches: As of `dovetail.train.engine.train`.
        to_views: Likewise.
        settings: Of the run.
        compare_threads: Whether to time a step with one thread too, on a processor.

    Raises:
        DovetailError: Where a step cannot be taken.
    """
    device = torch.device(settings.accelerator)
    micro_batches, reading = first_batches(batches, settings)
    with as_it_was(device):
        quiet = replace(settings, log_every_steps=1 << 40)
        module = LearnerModule(copy.deepcopy(learner).to(device), quiet, batches, to_views, 0)
        take = partial(timed_step, module, module.configure_optimizers(), micro_batches, device)
        for _ in range(WARM_UP):
            take()
        seconds = statistics.median(take() for _ in range(TIMED))
        single = None
        if compare_threads and device.type == "cpu" and torch.get_num_threads() > 1:
            with one_thread():
                single = min(take(), take())
        del module, take
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return StepTime(max(seconds, reading), single)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread within."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def first_batches(batches: Batches, settings: Settings) -> tuple[list[Any], float]:
    """Return the batches of the first step, and the seconds in which the next ones were read by the run's processes."""
    iterator = iter(batches(0))
    found = list(islice(iterator, settings.accumulate))
    before = time.perf_counter()
    again = list(islice(iterator, settings.accumulate))
    seconds = time.perf_counter() - before
    del iterator
    return found, seconds / max(settings.workers, 1) if again else 0.0


def timed_step(module: LearnerModule, optimiser: Any, micro_batches: list[Any], device: torch.device) -> float:
    """Take one optimiser step, as Lightning does, and return its seconds."""
    before = time.perf_counter()
    precision = precision_plugin(module.settings)
    for index, batch in enumerate(micro_batches):
        views = module.transfer_batch_to_device(batch, device, 0)
        with precision.forward_context():
            loss = module.training_step(views, index) / len(micro_batches)
        module.on_before_backward(loss)
        loss.backward()  # type: ignore[no-untyped-call]
        module.on_after_backward()
    module.on_before_optimizer_step(optimiser)
    module.optimizer_step(0, 0, optimiser)
    optimiser.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - before


@contextmanager
def as_it_was(device: torch.device) -> Iterator[None]:
    """Put back the state of random numbers, and how GPUs multiply, afterwards; the run's own ways hold within."""
    matmul = torch.get_float32_matmul_precision()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if device.type == "cuda" else []):
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(matmul)


def tell_time(learner: Learner, *, batches: Batches, to_views: ToViews, settings: Settings) -> StepTime | None:
    """Say how long a run of one process will take; nothing of a short one, or where it cannot be timed."""
    if settings.total_steps <= LEAST_STEPS or settings.world_size > 1:
        return None
    try:
        found = time_steps(learner, batches=batches, to_views=to_views, settings=settings, compare_threads=True)
    except (DovetailError, torch.OutOfMemoryError):  # the run itself says what is wrong
        return None
    print(expected(found.seconds, settings.total_steps), flush=True)
    if found.single_thread is not None and SLOWER * found.single_thread < found.seconds:
        log.warning(
            "A step takes %.2g s with %d threads and %.2g s with one: other programs keep the processor busy. Set "
            "OMP_NUM_THREADS=1 before the command to take one.",
            *(found.seconds, torch.get_num_threads(), found.single_thread),
        )
    return found


def expected(step_seconds: float, steps: int) -> str:
    """Return how long a run takes, and of a long one what a shorter run is.

    >>> expected(0.8, 2000)
    'Expected time: about 27 min (2,000 steps of 0.8 s).'
    """
    seconds = step_seconds * steps
    said = f"Expected time: about {in_words(seconds)} ({counted(steps, 'step')} of {step_seconds:.2g} s)."
    if seconds > LONG_SECONDS:
        fewer = max(int(LONG_SECONDS / 2 / step_seconds), 1)
        said += (
            f" A shorter run: --budget 30min plans one of about {counted(fewer, 'step')}; more images a second come "
            "from a smaller --image-size or a GPU."
        )
    return said
