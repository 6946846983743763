"""Signals are compared with scores by rank, over methods and within one, and never on too few."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import pytest
from benchmarks.evidence.arms import BUDGETS, TINY
from benchmarks.evidence.questions import arm_named
from benchmarks.evidence.records import Cell, Records
from benchmarks.evidence.signals import Pair, in_words, less_means, ranks, signal_parts, within_methods

BUDGET = dataclasses.replace(BUDGETS[TINY], seeds=tuple(range(8)), fractions=(0.5,))


def test_equal_values_share_their_mean_rank() -> None:
    assert ranks([3.0, 1.0, 3.0, 2.0]) == [2.5, 0.0, 2.5, 1.0]


def test_a_correlation_by_hand() -> None:
    """One swap of neighbours among nine: 1 - 6 * 2 / (9 * 80), and Fisher's interval about it."""
    text = in_words(list(range(9)), [0, 1, 2, 3, 4, 5, 6, 8, 7], lost=0)
    assert text == "**+0.98 [+0.92, +1.00]** (n = 9)"
    assert in_words(list(range(7)), list(range(7)), lost=0) == "too few"
    assert in_words(list(range(9)), list(range(9)), lost=2) == "too few"
    assert in_words([1.0] * 9, list(range(9)), lost=0) == "too few"


LABELS = (0.0, 0.2, 0.05, 0.1, 0.3, 0.15, 0.25, 0.35)  # what a seed's labels add for all
STEPS = ((0, 1, 2, 3, 4, 5, 6, 7), (5, 3, 7, 4, 6, 0, 1, 2))
METHODS = (
    *("slotcon", "decon-sl", "decon-ml", "densecl", "decon-sl-densecl", "decon-ml-densecl", "pixpro"),
    *("decon-sl-pixpro", "decon-ml-pixpro"),
)


def written(folder: Path, labels: Sequence[float]) -> Records:
    """Methods with higher ranks score higher, while within a method the run with the higher rank scores lower."""
    found = Records(folder / "lines.jsonl", BUDGET, {"stamps": "data"})
    for place, name in enumerate(METHODS):
        for seed in BUDGET.seeds:
            step, level = STEPS[place % 2][seed], 10.0 * place
            facts = {
                "scores": {"mIoU": level / 100 + labels[seed] - 0.001 * step},
                "signals": {"effective_rank": level + step},
            }
            found.add(arm_named(name), Cell("score", name, "encoder", 0.5, seed), facts)
    return found


@pytest.fixture
def records(tmp_path: Path) -> Records:
    """Runs whose scores differ by their labels, too."""
    return written(tmp_path, LABELS)


def test_a_method_that_is_better_on_the_whole_is_told_from_the_better_run_of_a_method(records: Records) -> None:
    text = "\n".join(signal_parts(records))
    over, within = (next(line for line in text.splitlines() if way in line) for way in ("| methods", "| runs of one"))
    assert "| **+1.00 [" in over
    assert over.endswith("(n = 9) |")
    assert "| **-" in within
    assert within.endswith("(n = 72) |")
    assert "spread" not in text.split("| --- |")[1]


def test_what_labels_make_easy_for_all_does_not_count(tmp_path: Path) -> None:
    with_labels, without = written(tmp_path / "with", LABELS), written(tmp_path / "without", [0.0] * 8)
    assert signal_parts(with_labels) == signal_parts(without)


def test_within_a_method_both_means_are_taken_away() -> None:
    """Scores are minus signals but for sums of what the seed and the method add, so ranks are opposite."""
    pairs = [
        Pair(name, seed, signal := float((seed * seed + 2 * seed * place) % 7), 50 * place + 9 * seed - signal)
        for place, name in enumerate("abc", start=1)
        for seed in range(6)
    ]
    assert within_methods(pairs).startswith("**-1.00 [")


def test_means_are_those_of_groups() -> None:
    assert less_means([1.0, 3.0, 10.0, 20.0], ["a", "a", "b", "b"]) == [-1.0, 1.0, -5.0, 5.0]


def test_other_starts_and_candidates_of_rates_do_not_count(records: Records) -> None:
    before = signal_parts(records)
    arm = arm_named("decon-sl")
    facts = {"scores": {"mIoU": 0.9}, "signals": {"effective_rank": 99.0}}
    records.add(arm, Cell("score", arm.name, "all", 0.5, 0), facts)
    records.add(arm, Cell("rate", arm.name, "encoder", 0.5, 0, 1e-3), facts)
    assert signal_parts(records) == before
