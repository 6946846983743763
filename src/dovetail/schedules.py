"""Values that change during a run: pure functions of where the run stands, plain data that can be saved.

A schedule is asked for its value at a `Moment`; nothing here counts, so nothing can be advanced twice or be
lost on resume.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Moment:
    """Where a run stands: `step` optimiser steps are done, of `total_steps`, `steps_per_epoch` to an epoch."""

    step: int
    total_steps: int
    steps_per_epoch: int

    @property
    def epoch(self) -> int:
        """Whole epochs done."""
        return self.step // max(self.steps_per_epoch, 1)

    @property
    def progress(self) -> float:
        """Share of the run done, in [0, 1]."""
        return self.step / max(self.total_steps, 1)


@dataclass(frozen=True)
class Cosine:
    """From `start` to `end` along half a cosine: `end + (start - end) (1 + cos(pi step / total)) / 2`.

    Teacher momentum (SlotCon, PixPro, DINO, BYOL) and DINO's weight decay. The last step used is `total - 1`,
    so `end` itself is approached and, as in the official codes, not reached.
    """

    start: float
    end: float

    def __call__(self, moment: Moment) -> float:
        return self.end + (self.start - self.end) * (1 + math.cos(math.pi * moment.progress)) / 2


@dataclass(frozen=True)
class WarmupCosine:
    """Linear from `start` to `peak` over `warmup_epochs`, then half a cosine to `end`.

    `peak_twice=False` (SlotCon, PixPro, MoCo v3): the ramp would reach `peak` at the first cosine step.
    `peak_twice=True` (DINO, iBOT): the ramp's last step has the peak, and so has the first cosine step.
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
    """`start` in epoch 0, in equal steps to `end` in epoch `epochs - 1`, constant from there (DINO's temperature).

    `delay_epochs` at `start` come before all that (iBOT's patch temperature, while nothing is masked yet).
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
            # A ramp of one epoch is its first value, then the end.
            return self.start if epoch == 0 and self.epochs == 1 else self.end
        return self.start + (self.end - self.start) * epoch / (self.epochs - 1)


@dataclass(frozen=True)
class Scaled:
    """Another schedule's values, multiplied by `factor`."""

    schedule: Callable[[Moment], float]
    factor: float

    def __call__(self, moment: Moment) -> float:
        return self.factor * self.schedule(moment)


Schedule = float | Callable[[Moment], float]
"""A number, or a function of where a run stands: one of this file's, or any other."""


def value_at(schedule: Schedule, moment: Moment) -> float:
    """Return the schedule's value at `moment`; a plain number is its own value."""
    if isinstance(schedule, (int, float)):
        return float(schedule)
    return schedule(moment)


def scaled(schedule: Schedule, factor: float) -> Schedule:
    """Return the schedule with all its values multiplied by `factor`."""
    if isinstance(schedule, (int, float)):
        return schedule * factor
    if isinstance(schedule, WarmupCosine):
        return replace(schedule, start=schedule.start * factor, peak=schedule.peak * factor, end=schedule.end * factor)
    if isinstance(schedule, (Cosine, LinearByEpoch)):
        return replace(schedule, start=schedule.start * factor, end=schedule.end * factor)
    return Scaled(schedule, factor)
