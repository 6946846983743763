"""Signals are compared with scores by rank, over all runs and within a method, and never on too few runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from benchmarks.evidence.arms import BUDGETS, TINY
from benchmarks.evidence.questions import arm_named
from benchmarks.evidence.records import Cell, Records
from benchmarks.evidence.signals import in_words, ranks, signal_parts

BUDGET = dataclasses.replace(BUDGETS[TINY], seeds=tuple(range(6)), fractions=(0.5,))


def test_equal_values_share_their_mean_rank() -> None:
    assert ranks([3.0, 1.0, 3.0, 2.0]) == [2.5, 0.0, 2.5, 1.0]


def test_a_correlation_by_hand() -> None:
    """One swap of neighbours among nine: 1 - 6 * 2 / (9 * 80), and Fisher's interval about it."""
    text = in_words(list(range(9)), [0, 1, 2, 3, 4, 5, 6, 8, 7], lost=0)
    assert text == "**+0.98 [+0.91, +1.00]** (n = 9)"
    assert in_words(list(range(7)), list(range(7)), lost=0) == "too few"
    assert in_words(list(range(9)), list(range(9)), lost=2) == "too few"
    assert in_words([1.0] * 9, list(range(9)), lost=0) == "too few"


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """Two methods: the one with the higher rank scores higher, while within either the higher rank scores lower."""
    found = Records(tmp_path / "lines.jsonl", BUDGET, {"stamps": "data"})
    for name, level in (("densecl", 10.0), ("slotcon", 20.0)):
        for seed in BUDGET.seeds:
            facts = {"scores": {"mIoU": level / 100 - 0.001 * seed}, "signals": {"effective_rank": level + seed}}
            found.add(arm_named(name), Cell("score", name, "encoder", 0.5, seed), facts)
    return found


def test_a_method_that_is_better_on_the_whole_is_told_from_the_better_run_of_a_method(records: Records) -> None:
    text = "\n".join(signal_parts(records))
    over, within = (next(line for line in text.splitlines() if way in line) for way in ("all runs", "runs of one"))
    assert over.endswith("| +0.51 [-0.13, +0.85] (n = 12) |")  # 1 - 6 * 140 / (12 * 143)
    assert "| **-" in within
    assert within.endswith("(n = 12) |")
    assert "spread" not in text.split("| --- |")[1]


def test_other_starts_and_candidates_of_rates_do_not_count(records: Records) -> None:
    before = signal_parts(records)
    arm = arm_named("decon-sl")
    facts = {"scores": {"mIoU": 0.9}, "signals": {"effective_rank": 99.0}}
    records.add(arm, Cell("score", arm.name, "all", 0.5, 0), facts)
    records.add(arm, Cell("rate", arm.name, "encoder", 0.5, 0, 1e-3), facts)
    assert signal_parts(records) == before
