"""Does what a run says of itself pick the better one? Rank correlations of its signals with what fine-tuning gives.

A signal is read at the end of pre-training: the effective rank and the spread of the encoder's deepest map or token,
which every run logs, and kNN of the frozen encoder where the set has whole images with a class each.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence

from benchmarks.evidence.arms import ENCODER
from benchmarks.evidence.questions import question_named
from benchmarks.evidence.records import Records

TITLE = "## Does a run's own signal pick the better run?\n"
SIGNALS: Mapping[str, str] = {
    "effective_rank": "effective rank",
    "spread": "spread",
    "kNN": "kNN of the frozen encoder",
}
FEWEST = 8  # runs, below which nothing is said

Pair = tuple[str, float, float]
"""A run's method, its signal and its score."""


def signal_parts(records: Records) -> list[str]:
    """Return the parts of the page on one budget; what has no runs is said."""
    columns = {f"{100 * part:g} %": part for part in records.budget.fractions}
    table = {(name, part): pairs_of(records, name, part) for name in SIGNALS for part in columns.values()}
    known = [name for name in SIGNALS if any(len(table[name, part]) >= FEWEST for part in columns.values())]
    if not known:
        return [f"Budget `{records.budget.name}`: **too few runs have been fine-tuned.**\n"]
    ways: dict[str, Callable[[Sequence[Pair]], str]] = {"all runs": over_all, "runs of one method": within_methods}
    lines = [
        f"### Budget `{records.budget.name}`: signals\n",
        "Spearman's rank correlation of a signal at the end of pre-training with mIoU after fine-tuning from the "
        "encoder, with its 95 % interval (Fisher's z) and the number of runs; over all methods of the first question, "
        "and over the seeds of one method, whose means are taken away:\n",
        f"| signal | among | {' | '.join(columns)} |",
        f"| --- | --- |{' ---: |' * len(columns)}",
    ]
    for name in known:
        for way, told in ways.items():
            cells = [told(table[name, part]) for part in columns.values()]
            lines.append(f"| {SIGNALS[name]} | {way} | {' | '.join(cells)} |")
    return [*lines, ""]


def pairs_of(records: Records, signal: str, fraction: float) -> list[Pair]:
    """Return a signal and a score of every run of the first question that was fine-tuned from its encoder."""
    return [
        (arm.name, float(line["signals"][signal]), float(line["scores"]["mIoU"]))
        for arm in question_named("segmentation").arms
        for cell, line in records.found(arm).items()
        if (cell.kind, cell.start, cell.fraction) == ("score", ENCODER, fraction)
        and cell.seed in records.budget.seeds
        and signal in line.get("signals", {})
    ]


def over_all(pairs: Sequence[Pair]) -> str:
    """Return the rank correlation over all runs in words."""
    return in_words([signal for _, signal, _ in pairs], [score for _, _, score in pairs], lost=0)


def within_methods(pairs: Sequence[Pair]) -> str:
    """Return the rank correlation of what is left when each method's means are taken away."""
    methods = {name for name, _, _ in pairs}
    means = {
        name: [statistics.fmean(one[place] for one in pairs if one[0] == name) for place in (1, 2)] for name in methods
    }
    signals = [signal - means[name][0] for name, signal, _ in pairs]
    return in_words(signals, [score - means[name][1] for name, _, score in pairs], lost=len(methods))


def in_words(signals: Sequence[float], scores: Sequence[float], *, lost: int) -> str:
    """Return a rank correlation with its interval; `lost` degrees of freedom went into means."""
    count = len(signals)
    if count - lost < FEWEST or len(set(signals)) < 2 or len(set(scores)) < 2:
        return "too few"
    found = min(max(statistics.correlation(ranks(signals), ranks(scores)), -0.9999), 0.9999)
    half = 1.96 * 1.06 / math.sqrt(count - lost - 3)
    low, high = (math.tanh(math.atanh(found) + side * half) for side in (-1, 1))
    text = f"{found:+.2f} [{low:+.2f}, {high:+.2f}]"
    return f"{f'**{text}**' if low > 0 or high < 0 else text} (n = {count})"


def ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value, equal ones sharing their mean rank."""
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]
