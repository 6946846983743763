"""Candidates are measured once each, on pieces that no table shows, and the best of each method is marked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.evidence import choosing
from benchmarks.evidence.arms import BUDGETS, TINY
from benchmarks.scenes.textures import pieces_plan, write_pieces
from PIL import Image

from dovetail.transfer.ledger import lines_of
from tests.benchmarks.test_evidence import TEXTURES

DEFAULT, SLOWER = "rate 0.004, temperature 0.01", "rate 0.002, temperature 0.01"


def line(method: str, setting: str, seed: int, knn: float, linear: float) -> dict[str, Any]:
    """Return a line as the command writes it."""
    scores = {"kNN": knn, "linear": linear}
    about = {"budget": "cpu", "method": method, "setting": setting, "seed": seed}
    return {**about, "scores": scores, "date": f"2026-01-0{seed}"}


def test_seeds_of_choosing_are_none_of_the_tables() -> None:
    assert not any(set(choosing.SEEDS) & set(budget.seeds) for budget in BUDGETS.values())


def test_the_best_mean_of_both_probes_over_seeds_is_bold_for_each_method() -> None:
    lines = [
        line("dino", DEFAULT, 6, 0.5, 0.6),
        line("dino", DEFAULT, 5, 0.7, 0.8),
        line("dino", SLOWER, 5, 0.9, 0.3),
        line("adclr", DEFAULT, 5, 0.2, 0.2),
        line("adclr", SLOWER, 5, 0.2, 0.4),
        line("adclr", "a candidate that is gone", 5, 0.9, 0.9),
    ]
    page = choosing.table(lines, BUDGETS["cpu"])
    assert f"| dino | {DEFAULT} | 70.0, 50.0 | 80.0, 60.0 | **65.0** |" in page
    assert f"| dino | {SLOWER} | 90.0 | 30.0 | 60.0 |" in page
    assert f"| adclr | {SLOWER} | 20.0 | 40.0 | **30.0** |" in page
    assert "gone" not in page
    assert "2026-01-05 to 2026-01-06" in page


def test_pieces_to_choose_with_are_no_test_pieces(tmp_path: Path) -> None:
    plan = pieces_plan(32, 0)
    write_pieces(tmp_path, plan, (("choose", "validation", 12), ("test", "test", 12)))
    pixels = {
        part: [np.asarray(Image.open(path)) for path in (tmp_path / part).glob("*/*.png")]
        for part in ("choose", "test")
    }
    assert len(pixels["choose"]) == len(pixels["test"]) == 12
    assert not any(np.array_equal(one, other) for one in pixels["choose"] for other in pixels["test"])


@pytest.mark.slow
def test_what_is_written_down_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "BUDGETS", {TINY: TEXTURES})
    monkeypatch.setattr(choosing, "PIECES", 20)
    lines = tmp_path / "lines.jsonl"
    asked = [
        "--budget",
        TINY,
        "--cache",
        str(tmp_path / "cache"),
        "--lines",
        str(lines),
        "--table",
        str(tmp_path / "t"),
    ]
    asked += ["--methods", "adclr", "--seeds", "5", "--settings", DEFAULT]
    assert choosing.main(asked) == 0
    assert choosing.main([*asked, SLOWER]) == 0
    found = lines_of(lines)
    assert [one["setting"] for one in found] == [DEFAULT, SLOWER]
    assert [one["recipe"].get("base_lr") for one in found] == [0.004, 0.002]
    assert (tmp_path / "t").read_text().count("| adclr |") == 2
    assert json.loads(lines.read_text().splitlines()[0])["scores"].keys() == {"kNN", "linear"}
