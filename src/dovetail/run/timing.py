"""Estimates the duration of a run from a few steps with a temporary copy of the learner.

The copy takes whole optimiser steps on a real batch. The weights, statistics and random numbers of the run are not
changed, so the result of the run is bit-equal with and without timing.
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

LEAST_STEPS = 100  # in a shorter run, the first line of the log comes as soon as the estimate
WARM_UP, TIMED, ON_ONE_THREAD = 1, 3, 2  # steps
LONG_SECONDS = 3600.0
SLOWER = 1.2  # warn if several threads are slower than a single one by this factor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepTime:
    """Seconds per optimiser step, with all threads and (if measured) with a single thread."""

    seconds: float
    single_thread: float | None = None


def time_steps(
    learner: Learner, *, batches: Batches, to_views: ToViews, settings: Settings, compare_threads: bool = False
) -> StepTime:
    """Return the duration of a step: the median of three steps after a warm-up step, or the time to load a batch.

    After the warm-up step, a line says how long the timing of the other steps will take.

    Args:
        learner: Learner of the run, which is not changed.
        batches: As for `dovetail.train.engine.train`.
        to_views: As for `dovetail.train.engine.train`.
        settings: Settings of the run.
        compare_threads: Whether to time a step with a single thread, too (on a CPU).

    Returns:
        Seconds per step: computing or data loading, whichever is longer.

    Raises:
        DovetailError: A step fails.
    """
    device = torch.device(settings.accelerator)
    micro_batches, reading = first_batches(batches, settings)
    with as_it_was(device):
        quiet = replace(settings, log_every_steps=1 << 40)
        module = LearnerModule(copy.deepcopy(learner).to(device), quiet, batches, to_views, 0)
        take = partial(timed_step, module, module.configure_optimizers(), micro_batches, device)
        compare_threads = compare_threads and device.type == "cpu" and torch.get_num_threads() > 1
        first = max(take() for _ in range(WARM_UP))
        print(remaining(first, TIMED + ON_ONE_THREAD * compare_threads), flush=True)
        seconds = statistics.median(take() for _ in range(TIMED))
        single = None
        if compare_threads:
            with one_thread():
                single = min(take() for _ in range(ON_ONE_THREAD))
        del module, take
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return StepTime(max(seconds, reading), single)


def remaining(first: float, steps: int) -> str:
    """Return how long the timing takes, after a first step of so many seconds, which is slower than the others.

    >>> remaining(23.0, 3)
    'The first step took 23 s; timing 3 more takes up to 69 s.'
    """
    return f"The first step took {first:.2g} s; timing {steps} more takes up to {in_words(steps * first)}."


@contextmanager
def one_thread() -> Iterator[None]:
    """Use a single thread in the block."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def first_batches(batches: Batches, settings: Settings) -> tuple[list[Any], float]:
    """Return the batches of the first step, and the seconds per step that the workers of the run need for loading."""
    iterator = iter(batches(0))
    found = list(islice(iterator, settings.accumulate))
    before = time.perf_counter()
    again = list(islice(iterator, settings.accumulate))
    seconds = time.perf_counter() - before
    del iterator
    return found, seconds / max(settings.workers, 1) if again else 0.0


def timed_step(module: LearnerModule, optimiser: Any, micro_batches: list[Any], device: torch.device) -> float:
    """Take one optimiser step as Lightning does, and return its duration in seconds."""
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
    """Use the run's matmul precision in the block, and restore it and the random state afterwards."""
    matmul = torch.get_float32_matmul_precision()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if device.type == "cuda" else []):
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(matmul)


def tell_time(
    learner: Learner, *, batches: Batches, to_views: ToViews, settings: Settings, again: bool = False
) -> list[str]:
    """Print and return the expected duration of a single-process run, unless it is short or cannot be timed.

    With `again`, say that the steps were timed before: for a budget, from another time, which often differs.
    """
    if settings.total_steps <= LEAST_STEPS or settings.world_size > 1:
        return []
    print(f"Timing a few steps{' again' * again} …", flush=True)
    try:
        found = time_steps(learner, batches=batches, to_views=to_views, settings=settings, compare_threads=True)
    except (DovetailError, torch.OutOfMemoryError):  # the run itself will report the error
        return []
    told = [expected(found.seconds, settings.total_steps, again=again)]
    print(told[0], flush=True)
    if found.single_thread is not None and SLOWER * found.single_thread < found.seconds:
        told.append(about_threads(found.seconds, found.single_thread))
        log.warning("%s", told[-1])
    return told


def about_threads(seconds: float, single_thread: float) -> str:
    """Return how to use one thread, which is faster. The run does not switch by itself (see `docs/trouble.md`)."""
    return (
        f"A step takes {seconds:.2g} s with {torch.get_num_threads()} threads, but {single_thread:.2g} s with one, "
        "probably because other programs use the CPU. To use one thread, put OMP_NUM_THREADS=1 in front of the "
        "command, or call torch.set_num_threads(1) in Python."
    )


def expected(step_seconds: float, steps: int, *, again: bool = False) -> str:
    """Return the expected duration of a run, with advice if it is long.

    >>> expected(0.8, 2000)
    'Expected time: about 27 min (2,000 steps of 0.8 s).'
    """
    seconds = step_seconds * steps
    each = f"{counted(steps, 'step')} of {step_seconds:.2g} s{', timed again' * again}"
    said = f"Expected time: about {in_words(seconds)} ({each})."
    if seconds > LONG_SECONDS:
        fewer = max(int(LONG_SECONDS / 2 / step_seconds), 1)
        said += (
            f" For a shorter run, use --budget 30min (about {counted(fewer, 'step')}). A smaller --image-size or a GPU "
            "makes it faster."
        )
    return said
