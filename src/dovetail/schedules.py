"""Schedules: values that change during a run, as pure functions of the step. They are plain data and can be saved.

A schedule has no internal counter: its value depends only on the `Moment`. So it cannot be advanced twice or get lost
on resume.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Moment:
    """The position in a run: number of finished optimiser steps, total steps, and steps per epoch."""

    step: int
    total_steps: int
    steps_per_epoch: int

    @property
    def epoch(self) -> int:
        """Number of finished epochs."""
        return self.step // max(self.steps_per_epoch, 1)

    @property
    def progress(self) -> float:
        """Finished fraction of the run, in [0, 1]."""
        return self.step / max(self.total_steps, 1)


@dataclass(frozen=True)
class Cosine:
    """Cosine schedule from `start` to `end`: `end + (start - end) (1 + cos(pi step / total)) / 2`.

    Used for the teacher momentum (SlotCon, PixPro, DINO, BYOL) and for DINO's weight decay. As in the official code,
    the last step is `total - 1`, so `end` is approached, but not reached.
    """

    start: float
    end: float

    def __call__(self, moment: Moment) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * moment.progress)) / 2


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up from `start` to `peak` over `warmup_epochs`, then a cosine to `end`.

    With `peak_twice=False` (SlotCon, PixPro, MoCo v3), the first cosine step has the value `peak`. With
    `peak_twice=True` (DINO, iBOT), the last warm-up step has it, too.
    """

    start: float
    peak: float
    end: float
    warmup_epochs: float
    peak_twice: bool = False

    def __call__(self, moment: Moment) -> float:
        warmup = round(self.warmup_epochs * moment.steps_per_epoch)
        if moment.step < warmup:
            last = warmup - 1 if self.peak_twice else warmup
            return self.start + (self.peak - self.start) * moment.step / max(last, 1)
        share = (moment.step - warmup) / max(moment.total_steps - warmup, 1)
        return self.end + (self.peak - self.end) * (1 + math.cos(math.pi * share)) / 2


@dataclass(frozen=True)
class LinearByEpoch:
    """Linear schedule per epoch: `start` in epoch 0, `end` from epoch `epochs - 1` on (DINO's temperature).

    The value stays at `start` for `delay_epochs` first (iBOT's patch temperature, while no patch is masked).
    """

    start: float
    end: float
    epochs: int
    delay_epochs: int = 0

    def __call__(self, moment: Moment) -> float:
        epoch = moment.epoch - self.delay_epochs
        if epoch < 0:
            return self.start
        if epoch >= self.epochs - 1:
            # With a single epoch, the value is `start` in that epoch and `end` afterwards.
            return self.start if epoch == 0 and self.epochs == 1 else self.end
        return self.start + (self.end - self.start) * epoch / (self.epochs - 1)


@dataclass(frozen=True)
class Scaled:
    """A schedule multiplied by `factor`."""

    schedule: Callable[[Moment], float]
    factor: float

    def __call__(self, moment: Moment) -> float:
        return self.factor * self.schedule(moment)


Schedule = float | Callable[[Moment], float]
"""A number, or a function of a `Moment`, such as the schedules of this module."""


def value_at(schedule: Schedule, moment: Moment) -> float:
    """Return the value of a schedule at `moment`. A number is constant."""
    if isinstance(schedule, (int, float)):
        return float(schedule)
    return schedule(moment)


def scaled(schedule: Schedule, factor: float) -> Schedule:
    """Return the schedule multiplied by `factor`."""
    if isinstance(schedule, (int, float)):
        return schedule * factor
    if isinstance(schedule, WarmupCosine):
        return replace(schedule, start=schedule.start * factor, peak=schedule.peak * factor, end=schedule.end * factor)
    if isinstance(schedule, (Cosine, LinearByEpoch)):
        return replace(schedule, start=schedule.start * factor, end=schedule.end * factor)
    return Scaled(schedule, factor)
