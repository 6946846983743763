"""Means and their 95 % intervals over few seeds, of scores and of differences seed by seed.

    mean +- t(n - 1) s / sqrt(n)

with Student's t, as resampling five numbers gives intervals that are too narrow. A pair of rows is compared on the
seeds that both have: what a seed's labels make easy or hard for both cancels out.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

Seed = TypeVar("Seed")

# 97.5 % points of Student's t for 1 to 30 degrees of freedom; beyond, the normal's is used with a little to spare.
STUDENT = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Estimate:
    """A mean over n seeds and half the width of its 95 % interval; None for one seed."""

    mean: float
    half: float | None
    count: int

    @property
    def above_zero(self) -> bool:
        """Whether the whole interval is above zero."""
        return self.half is not None and self.mean - self.half > 0

    @property
    def below_zero(self) -> bool:
        """Whether the whole interval is below zero."""
        return self.half is not None and self.mean + self.half < 0


def estimate(values: Sequence[float]) -> Estimate:
    """Return the mean of at least one value with its interval."""
    count = len(values)
    if count < 2:
        return Estimate(statistics.fmean(values), None, count)
    half = STUDENT[min(count - 1, len(STUDENT)) - 1] * statistics.stdev(values) / math.sqrt(count)
    return Estimate(statistics.fmean(values), half, count)


def paired(first: Mapping[Seed, float], second: Mapping[Seed, float]) -> Estimate | None:
    """Return the mean of first minus second over the seeds that both have; None where there is none."""
    seeds = [seed for seed in first if seed in second]
    return estimate([first[seed] - second[seed] for seed in seeds]) if seeds else None
