"""Runs a table of fine-tuning trials: several starts, fractions of the labels, and seeds."""

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
from dovetail.train.interrupts import signal_name, stopped_at_once


@dataclass(frozen=True)
class Trial:
    """A fine-tuning trial.

    Attributes:
        start: Start of the trial.
        fraction: Fraction of the labelled images.
        seed: Seed of the subset, random weights, image order and augmentation.
        indices: Indices of the labelled images.
        keep: Whether to keep its weights if its start is the best (largest fraction, first seed).
        number: Number of the trial in its table, from 0.
    """

    start: Start
    fraction: float
    seed: int
    indices: tuple[int, ...]
    keep: bool
    number: int = 0

    @property
    def cell(self) -> Cell:
        """Identifier among finished trials."""
        return marked(self.start), self.fraction, self.seed


@dataclass(frozen=True)
class Grid:
    """All trials of a table: a row for each start and fraction, and a trial for each seed.

    Attributes:
        starts: Starts.
        fractions: Fractions of the labelled images.
        seeds: Seeds, one trial for each.
        total: Number of labelled images.
        order: Returns the image order for a seed, whose beginnings are the subsets. Only used for fractions below 1.
    """

    starts: Sequence[Start]
    fractions: Sequence[float]
    seeds: Sequence[int]
    total: int
    order: Callable[[int], Sequence[int]]

    def check(self) -> None:
        """Raise `OptionsError` if there are no trials, or a fraction is out of range."""
        if not self.fractions or not self.seeds:
            raise OptionsError("There are no trials to run; specify at least one --fraction and one seed.")
        for fraction in self.fractions:
            SHARE.check("fraction", fraction)

    def whole(self) -> Trial:
        """Return a trial with all images, for the options in results.json."""
        return Trial(self.starts[0], 1.0, self.seeds[0], tuple(range(self.total)), keep=False)

    def trials(self) -> Iterator[Trial]:
        """Yield the trials, row by row."""
        whole, count = range(self.total), itertools.count()
        orders = {seed: self.order(seed) if min(self.fractions) < 1 else whole for seed in self.seeds}
        for start in self.starts:
            for fraction in dict.fromkeys(self.fractions):
                for seed in self.seeds:
                    indices = tuple(fraction_of(orders[seed], fraction))
                    keep = (fraction, seed) == (max(self.fractions), self.seeds[0])
                    yield Trial(start, fraction, seed, indices, keep, next(count))


Fit = Callable[[Trial, Path | None], Fitted]
"""Fine-tunes and evaluates a trial, and writes the model to a folder if one is specified."""


@dataclass(frozen=True)
class Table:
    """The results of all trials.

    Attributes:
        rows: A row for each start and fraction.
        kept: Trial whose weights are kept: the start with the best mean score at the largest fraction.
        found: Results by start and fraction, one for each seed.
    """

    rows: tuple[Row, ...]
    kept: Trial
    found: Mapping[tuple[Start, float], Sequence[Fitted]]

    @property
    def details(self) -> dict[str, Any]:
        """Details of the trial whose weights are kept."""
        return dict(self.found[self.kept.start, self.kept.fraction][0].details)

    def note(self) -> tuple[str, ...]:
        """Return a note on the saved weights if there are several trials."""
        if sum(map(len, self.found.values())) == 1:
            return ()
        kept, row = self.kept, next(iter(self.rows))
        best = (
            f", the start with the best {next(iter(row.scores))} here"
            if len({one[0] for one in self.found}) > 1
            else ""
        )
        return (
            f"The saved weights are those of start {kept.start}{best}, fraction {kept.fraction:g}, seed {kept.seed}.",
        )


def run_trials(grid: Grid, *, fit: Fit, out: Path, mark: str, ending: bool = True) -> Table:
    """Run the remaining trials, keep the weights of the best start, and return the results.

    Args:
        grid: Trials.
        fit: Fine-tunes and evaluates a trial.
        out: Folder of trials.jsonl (see `Ledger`).
        mark: Hash of everything that affects the scores (see `mark_of`).
        ending: Whether to print how finished trials are run again.

    Raises:
        OptionsError: There are no trials, or a fraction is out of range.
    """
    grid.check()
    ledger = Ledger(out, mark)
    found: dict[tuple[Start, float], list[Fitted]] = {}
    best: Trial | None = None
    reused = 0
    for _, trials in itertools.groupby(grid.trials(), key=lambda trial: trial.start):
        for trial in trials:
            known = ledger.known.get(trial.cell)
            reused += known is not None
            one = known or run_trial(trial, ledger, fit)
            found.setdefault((trial.start, trial.fraction), []).append(one)
            if trial.keep:
                candidate = trial
            if known is not None:
                print(f"{described(trial, known)} (already finished)", flush=True)
        best = better(best, candidate, found)
        ledger.drop_candidates(but=best.cell)
    if reused and ending:
        before = counted(reused, "trial")
        print(f"{before} already finished with the same options and data; delete {out / TRIALS} to run all again.")
    assert best is not None  # `check` raises without starts
    if not ledger.has_weights(best.cell):  # its weights were lost or replaced
        found[best.start, best.fraction][0] = run_trial(best, ledger, fit)
    ledger.keep(best.cell)
    rows = tuple(row_of(start, fraction, grid.total, some) for (start, fraction), some in found.items())
    return Table(rows, best, found)


def better(first: Trial | None, second: Trial, found: Mapping[tuple[Start, float], Sequence[Fitted]]) -> Trial:
    """Return the trial whose start has the better mean score over seeds, or loads more if the scores are equal."""

    def rank(trial: Trial) -> tuple[float, float]:
        some = found[trial.start, trial.fraction]
        return sum(one.main for one in some) / len(some), -most_first(trial.start)

    return second if first is None or rank(second) > rank(first) else first


@contextmanager
def keeping_finished(ledger: Ledger) -> Iterator[None]:
    """Report which trials are saved if the block is interrupted by Ctrl-C or a signal.

    Raises:
        Interrupted: The block was interrupted.
    """
    with stopped_at_once() as received:
        try:
            yield
        except KeyboardInterrupt:
            number = received[0] if received else signal.SIGINT
            kept = f"with {counted(len(ledger.known), 'finished trial')} in {ledger.out / TRIALS}"
            goes_on = (
                f"{kept}; the same command resumes after them" if ledger.known else "before any trial was finished"
            )
            raise Interrupted(f"Stopped by {signal_name(number)} {goes_on}.", signal_number=number) from None


def check_trained(model: nn.Module) -> None:
    """Raise `DovetailError` if the trained weights are NaN or infinite, since scores would be meaningless."""
    check_finite(model.state_dict(), "The fine-tuned model", "try a lower --lr")


def run_trial(trial: Trial, ledger: Ledger, fit: Fit) -> Fitted:
    """Run a trial and record its result."""
    began = time.monotonic()
    with keeping_finished(ledger):
        found = fit(trial, ledger.candidate(trial.cell) if trial.keep else None)
        seconds = time.monotonic() - began
        ledger.add(trial.cell, found, images=len(trial.indices), seconds=seconds)
    print(f"{described(trial, found)} ({seconds:.0f} s)", flush=True)
    return found


def described(trial: Trial, found: Fitted) -> str:
    """Return a description of a trial with its scores."""
    shown = ", ".join(f"{name} {100 * score.mean:.2f}" for name, score in found.scores.items())
    return f"start {trial.start}, {counted(len(trial.indices), 'image')}, seed {trial.seed}: {shown}"


def row_of(start: str, fraction: float, total: int, found: Sequence[Fitted]) -> Row:
    """Return a row of the table with scores over seeds, or of a single seed."""
    setting: Mapping[str, Any] = {
        "start": start,
        "fraction": fraction,
        "images": len(fraction_of(range(total), fraction)),
    }
    if len(found) == 1:
        return Row(setting, found[0].scores)
    names = [name for name in found[0].scores if all(name in one.scores for one in found)]
    return Row(setting, {name: over_seeds([one.scores[name].mean for one in found]) for name in names})
