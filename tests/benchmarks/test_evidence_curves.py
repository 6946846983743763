"""The monitors' curves show what runs have logged, and the command runs what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.evidence import curves
from benchmarks.evidence.arms import TINY
from PIL import Image

from tests.benchmarks.test_evidence import TEXTURES

PICTURE = "results_adclr_monitors.png"


def log(folder: Path, values: dict[int, float]) -> Path:
    """Write a run's log with one monitor, and a line without it."""
    folder.mkdir(parents=True)
    lines = [{"step": step, "spread": {"cls": value, "queries": -1.0}} for step, value in values.items()]
    text = "\n".join(json.dumps(line) for line in [*lines, {"step": 99, "loss": 1.0}])
    (folder / "metrics.jsonl").write_text(text + "\n")
    return folder


def test_a_curve_holds_every_run_at_the_steps_that_all_have(tmp_path: Path) -> None:
    runs = [log(tmp_path / "a", {20: 0.5, 40: 0.25}), log(tmp_path / "b", {20: 0.75, 60: 1.0})]
    assert curves.curve(runs, "spread", "cls") == {20: [0.5, 0.75]}
    assert curves.curve(runs, "effective_rank", "cls") == {}
    assert curves.curve([], "spread", "cls") == {}


@pytest.mark.slow
def test_the_picture_is_drawn_from_runs_of_all_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves, "BUDGETS", {TINY: TEXTURES})
    asked = ["--budget", TINY, "--cache", str(tmp_path / "cache"), "--out", str(tmp_path)]
    asked += ["--pictures", PICTURE]
    assert curves.main(asked) == 0
    assert len(list((tmp_path / "cache" / "runs").iterdir())) == 3 * len(TEXTURES.seeds)
    with Image.open(tmp_path / PICTURE) as picture:
        assert min(picture.size) > 600
