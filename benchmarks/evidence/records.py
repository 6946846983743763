"""The lines of the study: one JSON object for each score, appended as soon as it is measured.

    {"mark", "row", "measure", "at", "labels", "seed", "kind", "scores", "facts", "date"}

"at" is a tap and a protocol for frozen maps ("decoder linear"), and a start for fine-tuning ("all"). "kind" is "score"
for the test images and "rate" for a candidate learning rate on the images to choose with. A line counts only with the
mark of the settings that produced it, a hash of the row, the scale and the images. Lines with other marks stay in the
file, and a line that was cut off when a run was killed, or lacks a field, is skipped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypedDict

from benchmarks.evidence.rows import Measure, Row
from benchmarks.evidence.scales import Scale
from dovetail.downstream.table.results import library_versions
from dovetail.files.schema import read_lines

EDITION = 3
"""Raise this number when a change that the settings do not show changes the scores."""


@dataclass(frozen=True)
class Cell:
    """What one line is about; `rate` is the learning rate where one is chosen, else 0."""

    row: str
    measure: Measure
    at: str
    labels: float
    seed: int
    kind: Literal["score", "rate"] = "score"
    rate: float = 0.0


class Line(TypedDict):
    """A line of the file."""

    mark: str
    row: str
    measure: str
    at: str
    labels: float
    seed: int
    kind: str
    rate: float
    scores: dict[str, float]
    facts: dict[str, Any]
    date: str


@dataclass(frozen=True)
class Records:
    """The lines of one scale on one state of the images.

    Attributes:
        path: JSON-lines file.
        scale: The sizes that count.
        images: Fingerprint of the set.
    """

    path: Path
    scale: Scale
    images: str

    def pretraining_mark(self, row: Row) -> str:
        """Return the hash of everything but the seed that decides a row's weights."""
        one = self.scale
        sizes = [one.networks[row.network], one.view_px, one.epochs, one.batch_size, self.images]
        return _hash([EDITION, row.init, None if row.pretraining is None else asdict(row.pretraining), sizes])

    def mark(self, row: Row, measure: Measure) -> str:
        """Return the hash of everything but labels and seed that decides a row's scores."""
        one = self.scale
        settings: Mapping[Measure, Any] = {
            "frozen": [one.plan.side_px, one.probing],
            "image": [one.view_px, one.neighbours],
            "segment": [one.finetuning, sorted(one.fractions.items()), one.rates, one.rate_fraction],
            "decoder": [one.finetuning, sorted(one.decoder_fractions.items()), one.rates, one.rate_fraction],
            "detect": [one.detection, one.detection_rates, one.rate_fraction],
        }
        return _hash([self.pretraining_mark(row), measure, settings[measure], dict(row.finetuning)])

    def found(self, row: Row, measure: Measure) -> dict[Cell, Line]:
        """Return the lines of a row that count."""
        mark = self.mark(row, measure)
        return {cell_of(line): line for line in read_lines(self.path, Line) if line["mark"] == mark}

    def add(self, row: Row, cell: Cell, scores: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
        """Append a line."""
        line = {
            "mark": self.mark(row, cell.measure),
            **asdict(cell),
            "scores": dict(scores),
            "facts": {**facts, "images": self.images, "versions": library_versions()},
            "date": datetime.now(UTC).date().isoformat(),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * torn + json.dumps(line) + "\n")


def cell_of(line: Mapping[str, Any]) -> Cell:
    """Return what a line is about."""
    return Cell(**{name: line[name] for name in Cell.__dataclass_fields__})


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
