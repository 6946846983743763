"""What a table of trials will take and where it stands: said once before it, and on the live line of every trial."""

from __future__ import annotations

import time
from collections.abc import Sequence

from dovetail.durations import in_words
from dovetail.errors import counted

TIMED_STEPS = 5  # after the first one, which is slower
LEAST_STEPS = 100  # whose time is worth a line


class Pace:
    """Counts the steps of a table and says how long they take."""

    def __init__(self, steps: Sequence[int]) -> None:
        """`steps` are those of each trial, in the order in which they run."""
        self.steps = steps
        self._trial = 0
        self._taken = 0
        self._began = 0.0
        self._told = False
        if len(steps) > 1:
            later = f" The expected time follows after {1 + TIMED_STEPS} steps." if sum(steps) > LEAST_STEPS else ""
            print(f"{counted(len(steps), 'trial')}, {counted(sum(steps), 'step')} in all.{later}", flush=True)

    def begin(self, number: int) -> str:
        """Begin trial `number`, from 0, and return how the live line names it."""
        self._trial, self._taken = number, 0
        return f"trial {number + 1} of {len(self.steps)}"

    def stepped(self, loss: float) -> str:
        """Count a step; return its loss, the rate, and the time that all steps left will take, for the live line."""
        self._taken += 1
        now = time.perf_counter()
        if self._taken == 1:
            self._began = now
            return f", loss {loss:.3f}"
        seconds = max(now - self._began, 1e-9) / (self._taken - 1)
        left = sum(self.steps[self._trial :]) - self._taken
        if self._taken == 1 + TIMED_STEPS and not self._told:
            self._told = True
            if left > LEAST_STEPS:
                print(
                    f"Expected time: about {in_words(seconds * left)} ({counted(left, 'step')} of {seconds:.2g} s) and "
                    "that of measuring.",
                    flush=True,
                )
        every = f", {in_words(seconds * left)} left in all" if left else ""
        return f", loss {loss:.3f}, {1 / seconds:.1f} steps/s{every}"
