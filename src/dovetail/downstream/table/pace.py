"""Prints the expected duration of a table of trials, and the progress of every trial."""

from __future__ import annotations

import time
from collections.abc import Sequence

from dovetail.durations import in_words
from dovetail.errors import counted

TIMED_STEPS = 5  # without the first step, which is slower


class Pace:
    """Counts the steps of a table and estimates its duration."""

    def __init__(self, steps: Sequence[int]) -> None:
        """`steps` has the number of steps of each trial, in the order in which they run."""
        self.steps = steps
        self._trial = 0
        self._taken = 0
        self._began = 0.0
        self._trial_began: float | None = None  # of the first trial that runs
        self._told = len(steps) < 2
        if not self._told:
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
            return f", loss {loss:.3f}"
        seconds = max(now - self._began, 1e-9) / (self._taken - 1)
        left = sum(self.steps[self._trial :]) - self._taken
        if self._taken == 1 + TIMED_STEPS and not self._told:
            self._told = True
            if left:
                print(
                    f"Expected time: about {in_words(seconds * left)} ({counted(left, 'step')} of {seconds:.2g} s), "
                    "plus evaluation.",
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
                f"{in_words(seconds)} of the one before).",
                flush=True,
            )
        self._trial_began = now
