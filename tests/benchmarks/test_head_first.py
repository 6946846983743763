"""The study of training the head first: what it measures is kept, and the page compares seed by seed."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
from benchmarks.evidence.rows import CONTINUED, IMAGENET, RANDOM
from benchmarks.evidence.scales import SCALES

from benchmarks import head_first


def test_measures_each_score_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ROWS": (RANDOM,), "LABELS": 4, "STEPS": 6, "HEAD_STEPS": 4, "SCORES": tmp_path}.items():
        monkeypatch.setattr(head_first, name, value)
    options = argparse.Namespace(seeds=[1], cache=tmp_path / "cache", results=tmp_path)
    head_first.study(options, SCALES["tiny"])
    lines = (tmp_path / "head_first.jsonl").read_text()
    scores = [json.loads(line) for line in lines.splitlines()]
    assert [(one["row"], one["seed"], one["head_first"]) for one in scores] == [(RANDOM.name, 1, at) for at in (0, 1)]
    assert scores[0]["miou"] != scores[1]["miou"]
    head_first.study(options, SCALES["tiny"])
    assert (tmp_path / "head_first.jsonl").read_text() == lines


def test_the_page_compares_the_seeds_that_have_both() -> None:
    scores = {(IMAGENET.name, 0): (0.20, 0.21), (IMAGENET.name, 1): (0.30, 0.33), (CONTINUED.name, 0): (0.25, None)}
    known = [
        {"row": row, "seed": seed, "head_first": bool(first), "miou": miou}
        for (row, seed), pair in scores.items()
        for first, miou in enumerate(pair)
        if miou is not None
    ]
    rows = [line for line in head_first.page(known).splitlines() if line.startswith(("| Im", "| De"))]
    assert rows == [f"| {IMAGENET.name} | 2 | 25.0 | 27.0 | +2.0 |"]
