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
        keep: Whether its weights are kept if its start turns out the best: of the largest fraction and the first seed.
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

    def check(self) -> None:
        """Raise `OptionsError` for no trial, or a fraction out of range."""
        if not self.fractions or not self.seeds:
            raise OptionsError("There is no trial to run; give at least one --fraction and one of --seeds.")
        for fraction in self.fractions:
            SHARE.check("fraction", fraction)

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
                    keep = (fraction, seed) == (max(self.fractions), self.seeds[0])
                    yield Trial(start, fraction, seed, indices, keep, next(count))


Fit = Callable[[Trial, Path | None], Fitted]
"""Fine-tunes and measures; writes the model into a folder where one is given."""


@dataclass(frozen=True)
class Table:
    """What all trials found.

    Attributes:
        rows: A row for each starting point and fraction.
        kept: The trial whose weights are kept: of the start with the best mean score at the largest fraction.
        found: What each trial found, by starting point and fraction, one for each seed.
    """

    rows: tuple[Row, ...]
    kept: Trial
    found: Mapping[tuple[Start, float], Sequence[Fitted]]

    @property
    def details(self) -> dict[str, Any]:
        """Further plain values of the trial whose weights are kept."""
        return dict(self.found[self.kept.start, self.kept.fraction][0].details)

    def note(self) -> tuple[str, ...]:
        """Return what to know about the weights where there are several trials."""
        if sum(map(len, self.found.values())) == 1:
            return ()
        kept, row = self.kept, next(iter(self.rows))
        best = (
            f", the start with the best {next(iter(row.scores))} here"
            if len({one[0] for one in self.found}) > 1
            else ""
        )
        return (
            f"The weights that were kept are those of start {kept.start}{best}, fraction {kept.fraction:g}, seed "
            f"{kept.seed}.",
        )


def run_trials(grid: Grid, *, fit: Fit, out: Path, mark: str) -> Table:
    """Run every trial that is not done yet, keep the weights of the best start, and return what was found.

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
                print(f"{described(trial, known)} (finished before)", flush=True)
        best = better(best, candidate, found)
        ledger.drop_candidates(but=best.cell)
    if reused:
        before = counted(reused, "trial")
        print(f"{before} had been finished with the same options and data; without {out / TRIALS} all are run.")
    assert best is not None  # there is a start, or `check` has raised
    if not ledger.has_weights(best.cell):  # made before, and lost or replaced since
        found[best.start, best.fraction][0] = run_trial(best, ledger, fit)
    ledger.keep(best.cell)
    rows = tuple(row_of(start, fraction, grid.total, some) for (start, fraction), some in found.items())
    return Table(rows, best, found)


def better(first: Trial | None, second: Trial, found: Mapping[tuple[Start, float], Sequence[Fitted]]) -> Trial:
    """Return the trial whose start has the better mean score over seeds; of equal ones the start that loads more."""

    def rank(trial: Trial) -> tuple[float, float]:
        some = found[trial.start, trial.fraction]
        return sum(one.main for one in some) / len(some), -most_first(trial.start)

    return second if first is None or rank(second) > rank(first) else first


@contextmanager
def keeping_finished(ledger: Ledger) -> Iterator[None]:
    """Say within what is kept when a trial is stopped: by Ctrl-C, or by a signal that ends a job or a terminal.

    Raises:
        Interrupted: After either.
    """
    with stopped_at_once() as received:
        try:
            yield
        except KeyboardInterrupt:
            number = received[0] if received else signal.SIGINT
            kept = f"with {counted(len(ledger.known), 'finished trial')} in {ledger.out / TRIALS}"
            goes_on = f"{kept}; the same command goes on after them" if ledger.known else "before a trial was finished"
            raise Interrupted(f"Stopped by {signal.Signals(number).name} {goes_on}.", signal_number=number) from None


def check_trained(model: nn.Module) -> None:
    """Raise `DovetailError` where training has left weights that are not finite: no score would mean anything."""
    check_finite(model.state_dict(), "The fine-tuned model", "try a lower --lr")


def run_trial(trial: Trial, ledger: Ledger, fit: Fit) -> Fitted:
    """Run a trial and write down what it found."""
    began = time.monotonic()
    with keeping_finished(ledger):
        found = fit(trial, ledger.candidate(trial.cell) if trial.keep else None)
        seconds = time.monotonic() - began
        ledger.add(trial.cell, found, images=len(trial.indices), seconds=seconds)
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
