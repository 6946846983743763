"""`python -m benchmarks.evidence.curves`: what the monitors of collapse say during ADCLR's pre-trainings.

Draws, over all seeds of the budget, effective rank, spread, prototypes used and the teacher's entropy of DINO's class
token, and of ADCLR's class token and queries: with attention one way and both ways, and in longer runs. Pre-trainings
that the study has kept (`--keep`) are read; the others are run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.evidence.__main__ import RESULTS, known_data
from benchmarks.evidence.arms import BUDGETS
from benchmarks.evidence.pictures import PICTURES
from benchmarks.evidence.questions import arm_named
from benchmarks.evidence.records import Records
from benchmarks.evidence.trial import Bench, pretrained
from benchmarks.scenes.fetch import default_cache
from benchmarks.scenes.sets import build
from dovetail.errors import DovetailError
from dovetail.report.plots import DASHES, LINE_COLOURS
from dovetail.transfer.ledger import lines_of

MONITORS: Mapping[str, str] = {
    "effective_rank": "effective rank",
    "spread": "spread",
    "prototypes_used": "prototypes used",
    "teacher_entropy": "teacher's entropy, share of the largest",
}
Lines = Mapping[str, tuple[str, str]]
"""Label -> the arm, and which of its outputs."""

_AT_LENGTH = "own settings, 4 times as long"
_AS_DINO = "ADCLR, DINO's settings"
PICTURES_OF: Mapping[str, Lines] = {
    "results_adclr_monitors.png": {
        "DINO, class token": ("dino, frozen", "cls"),
        "ADCLR, class token": ("adclr, frozen", "cls"),
        "ADCLR both ways, class token": ("adclr, frozen, bidirectional", "cls"),
        "ADCLR, queries": ("adclr, frozen", "queries"),
        "ADCLR both ways, queries": ("adclr, frozen, bidirectional", "queries"),
    },
    "results_adclr_monitors_longer.png": {
        "DINO, class token": (f"dino, frozen, {_AT_LENGTH}", "cls"),
        "ADCLR, class token": (f"adclr, frozen, {_AT_LENGTH}", "cls"),
        f"{_AS_DINO}, class token": (f"adclr, frozen, DINO's {_AT_LENGTH}", "cls"),
        "ADCLR, queries": (f"adclr, frozen, {_AT_LENGTH}", "queries"),
        f"{_AS_DINO}, queries": (f"adclr, frozen, DINO's {_AT_LENGTH}", "queries"),
    },
}
Curve = Mapping[int, Sequence[float]]
"""Optimiser step -> the value of each seed."""


def main(arguments: list[str]) -> int:
    """Pre-train what is missing, and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence.curves", description=__doc__)
    parser.add_argument("--budget", choices=BUDGETS, default="cpu", help="of the study")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder for packages, scenes and runs")
    parser.add_argument("--pictures", nargs="+", choices=PICTURES_OF, default=[*PICTURES_OF], help="instead of all")
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder for the pictures")
    options = parser.parse_args(arguments)
    budget = BUDGETS[options.budget]
    try:
        sets = {budget.home: build(budget.home, options.cache, budget.scenes)}
        data = {**known_data(RESULTS).get(budget.name, {}), budget.home: sets[budget.home].fingerprint}
        bench = Bench(sets, budget, Records(RESULTS / "none", budget, data), options.cache / "runs")
        options.out.mkdir(parents=True, exist_ok=True)
        for name in options.pictures:
            draw(PICTURES_OF[name], runs_of(bench, PICTURES_OF[name]), options.out / name)
            print(options.out / name)
    except DovetailError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def runs_of(bench: Bench, lines: Lines) -> dict[str, list[Path]]:
    """Return the pre-trainings of every seed behind some lines, by arm; those that are missing are run."""
    arms = {arm: arm_named(arm) for arm, _ in lines.values()}
    seeds = bench.budget.seeds
    return {name: [run for seed in seeds if (run := pretrained(bench, arm, seed))] for name, arm in arms.items()}


def curve(runs: Sequence[Path], monitor: str, output: str) -> Curve:
    """Return what a monitor said of one output, at the steps that all runs logged."""
    logs = [
        {
            line["step"]: float(line[monitor][output])
            for line in lines_of(run / "metrics.jsonl")
            if output in line.get(monitor, {})
        }
        for run in runs
    ]
    shared = sorted(set.intersection(*map(set, logs))) if logs else []
    return {step: [log[step] for log in logs] for step in shared}


def draw(lines: Lines, runs: Mapping[str, Sequence[Path]], place: Path) -> None:
    """Write a picture: a line for the mean over an arm's runs, a band from the least to the most."""
    with mpl.rc_context({"font.size": 10, "axes.grid": True, "grid.linewidth": 0.4, "legend.frameon": False}):
        figure = Figure(figsize=(10.5, 7.4), layout="constrained")
        panels = figure.subplots(2, 2).flat
        for axes, (monitor, unit) in zip(panels, MONITORS.items(), strict=True):
            panel(axes, {label: curve(runs[arm], monitor, output) for label, (arm, output) in lines.items()}, unit)
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        figure.savefig(place, dpi=100)


def panel(axes: Axes, curves: Mapping[str, Curve], unit: str) -> None:
    """Draw one monitor."""
    for number, (name, found) in enumerate(curves.items()):
        steps, values = list(found), list(found.values())
        colour = LINE_COLOURS[number]
        axes.fill_between(steps, list(map(min, values)), list(map(max, values)), color=colour, alpha=0.15, linewidth=0)
        means = list(map(statistics.fmean, values))
        axes.plot(steps, means, color=colour, linestyle=DASHES[number % len(DASHES)], label=name)
    axes.set_xlabel("optimiser steps")
    axes.set_title(unit, loc="left", fontsize=10)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
