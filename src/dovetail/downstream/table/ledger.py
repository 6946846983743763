"""What was measured already, so that an interrupted table goes on where it stopped.

    trials.jsonl: a line for each finished trial: {mark, start, fraction, seed, images, seconds, scores, details,
                  per_image, curve}
    kept.json: the trial whose weights lie beside it
    candidates/: weights of which one will be kept, until it is known which start is best

A line counts only where its mark, a hash of everything that decides the numbers, is that of the table at hand; other
lines stay in the file for the tables that they belong to.
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
from dovetail.downstream.table.results import Score, library_versions, without_interval_of_two
from dovetail.files.durable import write_whole
from dovetail.files.schema import parsed, read_lines
from dovetail.options import Options

TRIALS, KEPT, CANDIDATES = "trials.jsonl", "kept.json", "candidates"
Cell = tuple[str, float, int]
"""Starting point, fraction, seed."""

# Which cells a table has, where things lie, how quick it goes; what of them decides numbers is marked by itself.
FREE = frozenset(
    {"run", "data", "out", "start", "fraction", "seeds", "seed", "workers", "accelerator", "precision", "check"}
)
# Options that came later: left empty, they keep the marks of tables that were begun before.
LATER = frozenset({"label_map", "value_range"})


@dataclass(frozen=True)
class Curve:
    """Points of (step, value) along a trial: mean loss since the point before, and score on some test images."""

    loss: tuple[tuple[int, float], ...] = ()
    validation: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Fitted:
    """What a trial found.

    Attributes:
        scores: By name, the one that counts first.
        details: Further plain values.
        per_image: How far each test image moves the first score, to first order; empty where that is not known.
        curve: Its loss, and its score on some test images, along its steps.
    """

    scores: Mapping[str, Score]
    details: Mapping[str, Any] = field(default_factory=dict)
    per_image: tuple[float, ...] = ()
    curve: Curve = field(default_factory=lambda: Curve())

    @property
    def main(self) -> float:
        """The first score; minus infinity for one that is not a number."""
        value = next(iter(self.scores.values())).mean
        return -math.inf if math.isnan(value) else value


class Ledger:
    """The finished trials in a folder. A line that was cut off when a run was killed is passed over."""

    def __init__(self, out: Path, mark: str) -> None:
        self.out = out
        self.mark = mark
        self.known: dict[Cell, Fitted] = {}
        for line in read_lines(out / TRIALS, Line):
            if line["mark"] == mark:
                scores = {name: without_interval_of_two(score) for name, score in line["scores"].items()}
                self.known[line["start"], line["fraction"], line["seed"]] = Fitted(
                    scores, line["details"], tuple(line.get("per_image", ())), line.get("curve", Curve())
                )

    def add(self, cell: Cell, found: Fitted, *, images: int, seconds: float) -> None:
        """Write down a finished trial."""
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
        """Return the folder for the weights of a cell's trial, until it is known whether they are kept."""
        text = json.dumps([self.mark, *cell])
        return self.out / CANDIDATES / hashlib.sha256(text.encode()).hexdigest()[:12]

    def has_weights(self, cell: Cell) -> bool:
        """Whether the weights of a cell's trial are there, kept or as a candidate."""
        return self._holds(cell) or all((self.candidate(cell) / name).is_file() for name in (WEIGHTS, TASK))

    def drop_candidates(self, *, but: Cell | None = None) -> None:
        """Remove the weights of all trials but one's that may yet be kept, or that are."""
        keep = None if but is None else self.candidate(but)
        for folder in (self.out / CANDIDATES).glob("*"):
            if folder != keep:
                shutil.rmtree(folder)
        if keep is None or not keep.exists():
            shutil.rmtree(self.out / CANDIDATES, ignore_errors=True)

    def keep(self, cell: Cell) -> None:
        """Put a cell's weights beside the results, in the place of those that were kept."""
        if not self._holds(cell):
            (self.out / KEPT).unlink(missing_ok=True)
            for name in (WEIGHTS, TASK):
                (self.candidate(cell) / name).replace(self.out / name)
            write_whole(self.out / KEPT, json.dumps([self.mark, *cell]) + "\n")
        self.drop_candidates()

    def _holds(self, cell: Cell) -> bool:
        """Whether the weights in the folder are those of a cell's trial."""
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
    """Return the hash of everything that decides a trial's numbers but its starting point, fraction and seed.

    Args:
        asked: Options of the command.
        decisive: What else does: weights, the data's fingerprint, device and number format.
    """
    options = {
        name: value for name, value in asked.as_dict().items() if name not in FREE and (value or name not in LATER)
    }
    text = json.dumps([options, [str(one) for one in decisive], library_versions()], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
