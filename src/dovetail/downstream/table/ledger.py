"""Records finished trials, so that an interrupted table can be resumed.

    trials.jsonl: a line for each finished trial: {mark, start, fraction, seed, images, seconds, scores, details,
                  per_image, curve}
    kept.json: the trial whose weights are in the folder
    candidates/: weights of trials until the best start is known, when one of them is kept

The mark of a line is a hash of everything that affects the scores. Only lines with the mark of the current table are
used; the others are kept for the tables that they belong to.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from dovetail.downstream.finished import TASK, WEIGHTS
from dovetail.downstream.table.results import Score, library_versions, with_own_interval
from dovetail.files.durable import write_whole
from dovetail.files.schema import parsed, read_lines
from dovetail.options import Options

TRIALS, KEPT, CANDIDATES = "trials.jsonl", "kept.json", "candidates"
Cell = tuple[str, float, int]
"""Starting point, fraction, seed."""

# Options for the rows of a table, paths and speed. Those that affect scores are part of the mark in another way.
FREE = frozenset(
    {"run", "data", "out", "start", "fraction", "seeds", "seed", "workers", "accelerator", "precision", "check"}
)
# Newer options: left empty, they do not change the marks of older tables.
LATER = frozenset({"label_map", "value_range", "encoder"})


@dataclass(frozen=True)
class Curve:
    """Points (step, value) of a trial: mean loss since the previous point, and score on some test images."""

    loss: tuple[tuple[int, float], ...] = ()
    validation: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Fitted:
    """The result of a trial.

    Attributes:
        scores: Scores by name, with the main score first.
        details: Further plain values.
        per_image: Influence of each test image on the main score to first order, or empty if unknown.
        curve: Loss, and score on some test images, over the steps.
    """

    scores: Mapping[str, Score]
    details: Mapping[str, Any] = field(default_factory=dict)
    per_image: tuple[float, ...] = ()
    curve: Curve = field(default_factory=lambda: Curve())

    @property
    def main(self) -> float:
        """The main score, or minus infinity if it is NaN."""
        value = next(iter(self.scores.values())).mean
        return -math.inf if math.isnan(value) else value


class Ledger:
    """The finished trials in a folder. Truncated lines of a killed run are skipped."""

    def __init__(self, out: Path, mark: str) -> None:
        self.out = out
        self.mark = mark
        self.known: dict[Cell, Fitted] = {}
        for line in read_lines(out / TRIALS, Line):
            if line["mark"] == mark:
                scores = {name: with_own_interval(score, "finetune") for name, score in line["scores"].items()}
                self.known[line["start"], line["fraction"], line["seed"]] = Fitted(
                    scores, line["details"], tuple(line.get("per_image", ())), line.get("curve", Curve())
                )

    def add(self, cell: Cell, found: Fitted, *, images: int, seconds: float) -> None:
        """Record a finished trial."""
        start, fraction, seed = cell
        line = {
            "mark": self.mark,
            "start": start,
            "fraction": fraction,
            "seed": seed,
            "images": images,
            "seconds": round(seconds, 1),
            "scores": {name: vars(score) for name, score in found.scores.items()},
            "details": dict(found.details),
            "per_image": [float(f"{value:.5g}") for value in found.per_image],
            "curve": vars(found.curve),
        }
        self.out.mkdir(parents=True, exist_ok=True)
        path = self.out / TRIALS
        torn = path.is_file() and not path.read_bytes().endswith(b"\n")
        with path.open("a", encoding="utf-8") as file:
            file.write("\n" * torn + json.dumps(line) + "\n")
        self.known[cell] = found

    def candidate(self, cell: Cell) -> Path:
        """Return the folder for the weights of a trial until the best start is known."""
        text = json.dumps([self.mark, *cell])
        return self.out / CANDIDATES / hashlib.sha256(text.encode()).hexdigest()[:12]

    def has_weights(self, cell: Cell) -> bool:
        """Return whether the weights of a trial exist, kept or as a candidate."""
        return self._holds(cell) or all((self.candidate(cell) / name).is_file() for name in (WEIGHTS, TASK))

    def drop_candidates(self, *, but: Cell | None = None) -> None:
        """Remove the candidate weights of all trials except `but`."""
        keep = None if but is None else self.candidate(but)
        for folder in (self.out / CANDIDATES).glob("*"):
            if folder != keep:
                shutil.rmtree(folder)
        if keep is None or not keep.exists():
            shutil.rmtree(self.out / CANDIDATES, ignore_errors=True)

    def keep(self, cell: Cell) -> None:
        """Keep the weights of a trial: move them to the results and replace the previous ones."""
        if not self._holds(cell):
            (self.out / KEPT).unlink(missing_ok=True)
            for name in (WEIGHTS, TASK):
                (self.candidate(cell) / name).replace(self.out / name)
            write_whole(self.out / KEPT, json.dumps([self.mark, *cell]) + "\n")
        self.drop_candidates()

    def _holds(self, cell: Cell) -> bool:
        """Return whether the weights in the folder belong to this trial."""
        if not all((self.out / name).is_file() for name in (WEIGHTS, TASK, KEPT)):
            return False
        return parsed((self.out / KEPT).read_bytes(), list[Any]) == [self.mark, *cell]


class Line(TypedDict):
    """A line of a file of trials."""

    mark: str
    start: str
    fraction: float
    seed: int
    scores: dict[str, Score]
    details: dict[str, Any]
    per_image: NotRequired[list[float]]
    curve: NotRequired[Curve]


def mark_of(asked: Options, *decisive: object) -> str:
    """Return a hash of everything that affects the scores of a trial, except its start, fraction and seed.

    Args:
        asked: Options of the command.
        decisive: Further values: weights, fingerprint of the data, device and precision.
    """
    options = {
        name: value for name, value in asked.as_dict().items() if name not in FREE and (value or name not in LATER)
    }
    text = json.dumps([options, [str(one) for one in decisive], library_versions()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
