"""What was measured, one JSON object a line, appended as soon as it is known.

    segmentation-cpu.jsonl   {"kind": "score" or "rate", "mark", "arm", "start", "fraction", "seed", "rate", "images",
                              "scores": {"mIoU", "aAcc", "mAcc"}, {"box AP", "mask AP", …} or {"kNN", "linear"},
                              "iou", "lr", "seconds",
                              "pretrain_seconds", "data", "machine", "device", "versions", "date"}

A line counts only with the mark of the settings at hand; others stay, for the tables that they belonged to. A line that
was cut off when a study was killed is passed over.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from benchmarks.evidence.arms import STUDY, Arm, Budget
from dovetail.transfer.ledger import lines_of
from dovetail.transfer.results import library_versions

Kind = Literal["score", "rate"]


_OF_SEGMENTATION = ("steps", "finetune_batch")  # sizes of fine-tuning


@dataclass(frozen=True)
class Cell:
    """What one line is about. `rate` tells the candidates apart where one is chosen; it is 0 elsewhere."""

    kind: Kind
    arm: str
    start: str
    fraction: float
    seed: int
    rate: float = 0.0


@dataclass(frozen=True)
class Records:
    """The lines of one budget on one state of the data.

    Attributes:
        path: The file.
        budget: Whose settings count.
        data: Fingerprint of each set of scenes.
    """

    path: Path
    budget: Budget
    data: Mapping[str, str]

    def scenes(self, arm: Arm) -> str:
        """Return the fingerprints of the scenes behind an arm's numbers: those pre-trained on, then others."""
        names = dict.fromkeys(map(self.budget.set_of, (arm.trained_on, arm.measured_on)))
        return "+".join(self.data.get(name, "") for name in names)

    def mark(self, arm: Arm) -> str:
        """Return the hash of everything that decides an arm's numbers; which fractions and seeds there are does not.

        An arm counts with what it departs in from the plainest, so that what later arms need leaves its lines alone.
        """
        plain = {one.name: one.default for one in fields(arm)}
        departs = {name: value for name, value in asdict(arm).items() if value != plain[name]}
        others = {"fractions", "seeds", "vit", "decon", "adclr", "home", "objects", "detector"}
        others |= set() if arm.network == "unet" else {"unet"}
        others |= {"rates", *_OF_SEGMENTATION} if arm.measure == "detection" else {"detection", "detection_rates"}
        others |= {"rates"} if arm.network == "vit" and arm.measure == "segmentation" else {"vit_rates"}
        sizes = {name: value for name, value in asdict(self.budget).items() if name not in others}
        sizes |= {"recipes": self.budget.recipe(arm), "model": self.budget.pretrained_model(arm)}
        text = json.dumps([STUDY, departs, sizes, self.scenes(arm)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def pretraining_mark(self, arm: Arm) -> str:
        """Return the hash of everything that decides an arm's pre-trained weights but the seed."""
        one = self.budget
        sizes = {"model": one.pretrained_model(arm), "epochs": one.epochs * arm.longer, "batch_size": one.batch_size}
        sizes |= {"view_px": one.view_px, "images": self.data.get(one.set_of(arm.trained_on), "")}
        text = json.dumps([STUDY, arm.method, one.recipe(arm), sizes], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def found(self, arm: Arm) -> dict[Cell, dict[str, Any]]:
        """Return the lines that count, of one arm."""
        mark = self.mark(arm)
        return {cell_of(line): line for line in self._lines() if line["mark"] == mark}

    def add(self, arm: Arm, cell: Cell, facts: Mapping[str, Any]) -> None:
        """Append a line."""
        line = {
            "mark": self.mark(arm),
            **asdict(cell),
            **facts,
            "data": self.scenes(arm),
            "versions": library_versions(),
            "date": datetime.now(UTC).date().isoformat(),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torn = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * torn + json.dumps(line) + "\n")

    def _lines(self) -> Iterator[dict[str, Any]]:
        yield from (line for line in lines_of(self.path) if "mark" in line and "kind" in line)


def cell_of(line: Mapping[str, Any]) -> Cell:
    """Return what a line is about."""
    return Cell(line["kind"], line["arm"], line["start"], line["fraction"], line["seed"], line["rate"])
