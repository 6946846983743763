"""Prints the expected duration of a table of trials, and the progress of every trial."""

from __future__ import annotations

import time
from collections.abc import Sequence

from dovetail.downstream.table.verdict import FEWEST_STEPS
from dovetail.durations import in_words
from dovetail.errors import counted

TIMED_STEPS = 5  # without the first step, which is slower
LONG_SECONDS = 1800.0


class Pace:
    """Counts the steps of a table and estimates its duration."""

    def __init__(self, steps: Sequence[int], *, ways: Sequence[str] = ()) -> None:
        """Print the number of trials and steps.

        Args:
            steps: Number of steps of each trial, in the order in which they run.
            ways: How a table becomes shorter other than by --steps, such as "a smaller --fraction".
        """
        self.steps = steps
        self.ways = ways
        self._trial = 0
        self._taken = 0
        self._began = 0.0
        self._trial_began: float | None = None  # of the first trial that runs
        self._told_first = self._told = False
        if len(steps) > 1:
            when = f"{1 + TIMED_STEPS} steps" if steps[0] > TIMED_STEPS else "the first trial"
            print(
                f"{counted(len(steps), 'trial')}, {counted(sum(steps), 'step')} in all. The expected time follows "
                f"after {when}.",
                flush=True,
            )

    def begin(self, number: int) -> str:
        """Start trial `number` (from 0) and return its name for the progress bar."""
        self._tell_of_trials(number)
        self._trial, self._taken = number, 0
        return f"trial {number + 1} of {len(self.steps)}"

    def stepped(self, loss: float) -> str:
        """Count a step, and return its loss, the speed and the remaining time for the progress bar."""
        self._taken += 1
        now = time.perf_counter()
        if self._taken == 1:
            self._began = now
            self._tell_of_first(now)
            return f", loss {loss:.3f}"
        seconds = max(now - self._began, 1e-9) / (self._taken - 1)
        left = sum(self.steps[self._trial :]) - self._taken
        if self._taken == 1 + TIMED_STEPS and not self._told:
            self._told = True
            if left:
                print(
                    f"Expected time: about {in_words(seconds * left)} ({counted(left, 'step')} of {seconds:.2g} s), "
                    f"plus evaluation.{self._shorter(seconds * left, seconds)}",
                    flush=True,
                )
        every = f", {in_words(seconds * left)} left in all" if left else ""
        return f", loss {loss:.3f}, {1 / seconds:.1f} steps/s{every}"

    def _tell_of_trials(self, number: int) -> None:
        """Print the expected time as trial `number` begins, if the trial before it was too short to time its steps."""
        now = time.perf_counter()
        if self._trial_began is not None and not self._told:
            self._told = True
            seconds, left = now - self._trial_began, self.steps[number:]
            expected = seconds * sum(left) / self.steps[self._trial]
            print(
                f"Expected time: about {in_words(expected)} with evaluation ({counted(len(left), 'trial')}, by the "
                f"{in_words(seconds)} of the one before).{self._shorter(expected)}",
                flush=True,
            )
        self._trial_began = now

    def _tell_of_first(self, now: float) -> None:
        """Print how long the first step of the table took, a sign of life if steps are slow."""
        if self._told_first or self._trial_began is None:
            return
        self._told_first = True
        seconds, left = now - self._trial_began, self.steps[self._trial] - 1
        others = f"; the other {left:,} of this trial take up to {in_words(seconds * left)}" if left else ""
        print(f"The first step took {seconds:.2g} s{others}.", flush=True)

    def _shorter(self, expected: float, step_seconds: float | None = None) -> str:
        """Return how to get a shorter table if its expected seconds are many, otherwise nothing."""
        if expected <= LONG_SECONDS:
            return ""
        fewer = 0 if step_seconds is None else int(LONG_SECONDS / step_seconds / len(self.steps)) // 10 * 10
        such = f" (--steps {fewer} takes about {in_words(LONG_SECONDS)})" if fewer >= FEWEST_STEPS else ""
        return f" For a shorter run, use {' or '.join(['fewer --steps' + such, *self.ways])}."
