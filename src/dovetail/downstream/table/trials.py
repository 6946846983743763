"""Fine-tuning from several starting points, with several shares of the labels, several times: one table."""

from __future__ import annotations

import itertools
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dovetail.downstream.labels.subsets import fraction_of
from dovetail.downstream.start import Start, marked, most_first
from dovetail.downstream.table.ledger import TRIALS, Cell, Fitted, Ledger
from dovetail.downstream.table.results import Row, over_seeds
from dovetail.errors import Interrupted, OptionsError, counted
from dovetail.files.finite import check_finite
from dovetail.options import SHARE
from dovetail.train.interrupts import stopped_at_once


@dataclass(frozen=True)
class Trial:
    """One fine-tuning.

    Attributes:
        start: What it starts from.
        fraction: Share of the labelled images.
        seed: Of subset, new weights, order and augmentation.
        indices: The labelled images.
        keep: Whether its weights are those that are kept.
        number: Of the trial in its table, from 0.
    """

    start: Start
    fraction: float
    seed: int
    indices: tuple[int, ...]
    keep: bool
    number: int = 0

    @property
    def cell(self) -> Cell:
        """What the trial is known by among those that are finished."""
        return marked(self.start), self.fraction, self.seed


@dataclass(frozen=True)
class Grid:
    """All trials of a table, a row for each starting point and fraction, a trial of it for each seed.

    Attributes:
        starts: Starting points.
        fractions: Shares of the labelled images.
        seeds: One trial for each.
        total: Labelled images there are.
        order: Seed -> the order whose beginnings are the subsets; asked only where a fraction is below 1.
    """

    starts: Sequence[Start]
    fractions: Sequence[float]
    seeds: Sequence[int]
    total: int
    order: Callable[[int], Sequence[int]]

    @property
    def kept(self) -> tuple[Start, float, int]:
        """The trial whose weights are kept: of the start that loads most, the largest fraction and the first seed."""
        return min(self.starts, key=most_first), max(self.fractions), self.seeds[0]

    def check(self) -> None:
        """Raise `OptionsError` for no trial, or a fraction out of range."""
        if not self.fractions or not self.seeds:
            raise OptionsError("There is no trial to run; give at least one --fraction and one of --seeds.")
        for fraction in self.fractions:
            SHARE.check("fraction", fraction)

    def notes(self) -> tuple[str, ...]:
        """Return what to know about the weights where there are several trials."""
        if len(self.starts) * len(set(self.fractions)) * len(self.seeds) == 1:
            return ()
        start, fraction, seed = self.kept
        return (f"The weights that were kept are those of start {start}, fraction {fraction:g}, seed {seed}.",)

    def whole(self) -> Trial:
        """Return a trial with all images, for what results.json says of the options."""
        return Trial(self.starts[0], 1.0, self.seeds[0], tuple(range(self.total)), keep=False)

    def trials(self) -> Iterator[Trial]:
        """Yield the trials, row by row."""
        whole, count = range(self.total), itertools.count()
        orders = {seed: self.order(seed) if min(self.fractions) < 1 else whole for seed in self.seeds}
        for start in self.starts:
            for fraction in dict.fromkeys(self.fractions):
                for seed in self.seeds:
                    indices = tuple(fraction_of(orders[seed], fraction))
                    yield Trial(start, fraction, seed, indices, (start, fraction, seed) == self.kept, next(count))


def run_trials(
    grid: Grid, *, fit: Callable[[Trial], Fitted], out: Path, mark: str
) -> tuple[tuple[Row, ...], dict[str, Any]]:
    """Run every trial that is not done yet, and return the table and the details of the one whose weights are kept.

    Args:
        grid: The trials.
        fit: Fine-tunes and measures.
        out: Folder of trials.jsonl; see `Ledger`.
        mark: Of what decides the numbers; see `mark_of`.

    Raises:
        OptionsError: For no trial, or a fraction out of range.
    """
    grid.check()
    ledger = Ledger(out, mark)
    found: dict[tuple[str, float], list[Fitted]] = {}
    details: dict[str, Any] = {}
    reused = 0
    for trial in grid.trials():
        known = ledger.finished(trial.cell, keep=trial.keep)
        reused += known is not None
        with keeping_finished(ledger):
            one = known or run_trial(trial, ledger, fit)
        found.setdefault((trial.start, trial.fraction), []).append(one)
        details |= one.details if trial.keep else {}
        if known is not None:
            print(f"{described(trial, known)} (finished before)", flush=True)
    if reused:
        before = counted(reused, "trial")
        print(f"{before} had been finished with the same options and data; without {out / TRIALS} all are run.")
    return tuple(row_of(start, fraction, grid.total, some) for (start, fraction), some in found.items()), details


@contextmanager
def keeping_finished(ledger: Ledger) -> Iterator[None]:
    """Say within what is kept when a trial is stopped: by Ctrl-C, or by a signal that ends a job or a terminal.

    Raises:
        Interrupted: After such a signal.
    """
    with stopped_at_once() as received:
        try:
            yield
        except KeyboardInterrupt:
            kept = f"{counted(len(ledger.known), 'finished trial')} in {ledger.out / TRIALS}"
            if not received:
                if ledger.known:
                    print(f"There are {kept}; the same command goes on after them.")
                raise
            raise Interrupted(
                f"Stopped by {signal.Signals(received[0]).name} with {kept}; the same command goes on after them.",
                signal_number=received[0],
            ) from None


def check_trained(model: nn.Module) -> None:
    """Raise `DovetailError` where training has left weights that are not finite: no score would mean anything."""
    check_finite(model.state_dict(), "The fine-tuned model", "try a lower --lr")


def run_trial(trial: Trial, ledger: Ledger, fit: Callable[[Trial], Fitted]) -> Fitted:
    """Run a trial and write down what it found."""
    began = time.monotonic()
    ledger.begin(keep=trial.keep)
    found = fit(trial)
    seconds = time.monotonic() - began
    ledger.add(trial.cell, found, keep=trial.keep, images=len(trial.indices), seconds=seconds)
    print(f"{described(trial, found)} ({seconds:.0f} s)", flush=True)
    return found


def described(trial: Trial, found: Fitted) -> str:
    """Return a trial and its scores in words."""
    shown = ", ".join(f"{name} {100 * score.mean:.2f}" for name, score in found.scores.items())
    return f"start {trial.start}, {counted(len(trial.indices), 'image')}, seed {trial.seed}: {shown}"


def row_of(start: str, fraction: float, total: int, found: Sequence[Fitted]) -> Row:
    """Return a line of the table: scores over seeds, or the one seed's own."""
    setting: Mapping[str, Any] = {
        "start": start,
        "fraction": fraction,
        "images": len(fraction_of(range(total), fraction)),
    }
    if len(found) == 1:
        return Row(setting, found[0].scores)
    names = [name for name in found[0].scores if all(name in one.scores for one in found)]
    return Row(setting, {name: over_seeds([one.scores[name].mean for one in found]) for name in names})
