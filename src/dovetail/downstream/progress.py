"""Progress of a loop: a bar on a terminal, and otherwise a line every quarter of a minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from dovetail.durations import in_words
from dovetail.errors import printable

LINE_SECONDS = 15.0  # between two lines without a terminal


class Advance(Protocol):
    """Advances the bar by a number of items, with a note after the title."""

    def __call__(self, done: int, note: str = "") -> None: ...


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Advance]:
    """Show the progress of the block. Call the yielded function with the number of items since the last call.

    Args:
        title: Title of the bar and of the lines.
        total: Total number of items, or None for an indeterminate bar.
    """
    if not sys.stderr.isatty():
        yield Lines(title, total)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    times = (TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, *times, console=Console(file=sys.stderr), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done, note="": bar.update(task, advance=done, description=f"{title}{note}")


class Lines:
    """Prints a line on the progress from time to time. A loop that is quick prints nothing."""

    def __init__(self, title: str, total: int | None) -> None:
        self.title = title
        self.total = total
        self.done = 0
        self._began = self._printed = time.perf_counter()

    def __call__(self, done: int, note: str = "") -> None:
        """Count items, and print a line if the last one was long ago."""
        self.done += done
        now = time.perf_counter()
        if now - self._printed < LINE_SECONDS:
            return
        self._printed = now
        of = left = ""
        if self.total is not None:
            of = f" of {self.total:,}"
            seconds = (now - self._began) / max(self.done, 1) * (self.total - self.done)
            left = f", about {in_words(seconds)} left" if not note and self.done < self.total else ""
        print(printable(f"{self.title}{note}: {self.done:,}{of}{left}"), file=sys.stderr, flush=True)
