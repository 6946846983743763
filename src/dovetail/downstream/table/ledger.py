"""What was measured already, so that an interrupted table goes on where it stopped.

    trials.jsonl: a line for each finished trial: {mark, start, fraction, seed, images, seconds, scores, details}
    kept.json: the trial whose weights lie beside it

A line counts only where its mark, a hash of everything that decides the numbers, is that of the table at hand; other
lines stay in the file for the tables that they belong to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

from dovetail.downstream.finished import TASK, WEIGHTS
from dovetail.downstream.table.results import Score, library_versions, without_interval_of_two
from dovetail.files.durable import write_whole
from dovetail.files.schema import parsed, read_lines
from dovetail.options import Options

TRIALS, KEPT = "trials.jsonl", "kept.json"
Cell = tuple[str, float, int]
"""Starting point, fraction, seed."""

# Which cells a table has, where things lie, how quick it goes; what of them decides numbers is marked by itself.
FREE = frozenset(
    {"run", "data", "out", "start", "fraction", "seeds", "seed", "workers", "accelerator", "precision", "check"}
)
# Options that came later: left empty, they keep the marks of tables that were begun before.
LATER = frozenset({"label_map", "value_range"})


@dataclass(frozen=True)
class Fitted:
    """What a trial found: its scores, and further plain values."""

    scores: Mapping[str, Score]
    details: Mapping[str, Any] = field(default_factory=dict)


class Ledger:
    """The finished trials in a folder. A line that was cut off when a run was killed is passed over."""

    def __init__(self, out: Path, mark: str) -> None:
        self.out = out
        self.mark = mark
        self.known: dict[Cell, Fitted] = {}
        for line in read_lines(out / TRIALS, Line):
            if line["mark"] == mark:
                scores = {name: without_interval_of_two(score) for name, score in line["scores"].items()}
                self.known[line["start"], line["fraction"], line["seed"]] = Fitted(scores, line["details"])

    def finished(self, cell: Cell, *, keep: bool) -> Fitted | None:
        """Return what a cell's trial found; None where it has to be done, be it only for its weights."""
        return None if keep and not self._holds(cell) else self.known.get(cell)

    def begin(self, *, keep: bool) -> None:
        """Note that a trial begins, which replaces the weights if it keeps its own."""
        self.out.mkdir(parents=True, exist_ok=True)
        if keep:
            (self.out / KEPT).unlink(missing_ok=True)

    def add(self, cell: Cell, found: Fitted, *, keep: bool, images: int, seconds: float) -> None:
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
        }
        path = self.out / TRIALS
        torn = path.is_file() and not path.read_bytes().endswith(b"\n")
        with path.open("a", encoding="utf-8") as file:
            file.write("\n" * torn + json.dumps(line) + "\n")
        if keep:
            write_whole(self.out / KEPT, json.dumps([self.mark, *cell]) + "\n")
        self.known[cell] = found

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
