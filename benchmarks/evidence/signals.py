"""Does what a run says of itself pick the better one? Rank correlations of its signals with what fine-tuning gives.

A signal is read at the end of pre-training: the effective rank and the spread of the encoder's deepest map or token,
which every run logs, and kNN of the frozen encoder where the set has whole images with a class each.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.evidence.arms import ENCODER
from benchmarks.evidence.questions import question_named
from benchmarks.evidence.records import Records

TITLE = "## Does a run's own signal pick the better run?\n"
SIGNALS: Mapping[str, str] = {
    "effective_rank": "effective rank",
    "spread": "spread",
    "kNN": "kNN of the frozen encoder",
}
FEWEST = 8  # runs or methods, below which nothing is said


class Pair(NamedTuple):
    """What is known of a run: whose it is, what it says of itself, and what fine-tuning gave."""

    method: str
    seed: int
    signal: float
    score: float


def signal_parts(records: Records) -> list[str]:
    """Return the parts of the page on one budget; what has no runs is said."""
    columns = {f"{100 * part:g} %": part for part in records.budget.fractions}
    table = {(name, part): pairs_of(records, name, part) for name in SIGNALS for part in columns.values()}
    known = [name for name in SIGNALS if any(len(table[name, part]) >= FEWEST for part in columns.values())]
    if not known:
        return [f"Budget `{records.budget.name}`: **too few runs have been fine-tuned.**\n"]
    ways: dict[str, Callable[[Sequence[Pair]], str]] = {"methods": over_methods, "runs of one method": within_methods}
    lines = [
        f"### Budget `{records.budget.name}`: signals\n",
        "Spearman's rank correlation of a signal at the end of pre-training with mIoU after fine-tuning from the "
        "encoder, with its 95 % interval (Fisher's z) and how many are compared: the means of the methods of the first "
        "question, or their runs, less the mean of the method and what each seed's labels make easy or hard for all. "
        "kNN is of the parts of the photographs that the test mosaics are made of, with their labels, so that it may "
        "know more than kNN on images of one's own would:\n",
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
        Pair(arm.name, cell.seed, float(line["signals"][signal]), float(line["scores"]["mIoU"]))
        for arm in question_named("segmentation").arms
        for cell, line in records.found(arm).items()
        if (cell.kind, cell.start, cell.fraction) == ("score", ENCODER, fraction)
        and cell.seed in records.budget.seeds
        and signal in line.get("signals", {})
    ]


def over_methods(pairs: Sequence[Pair]) -> str:
    """Return the rank correlation of the methods' means in words: runs of one method are no methods of their own."""
    seeds, methods = [one.seed for one in pairs], [one.method for one in pairs]
    signals, scores = (means_of(less_means(values, seeds), methods) for values in columns_of(pairs))
    return in_words(signals, scores, lost=0)


def within_methods(pairs: Sequence[Pair]) -> str:
    """Return the rank correlation of what is left when the means of each seed and method are taken away."""
    seeds, methods = [one.seed for one in pairs], [one.method for one in pairs]
    signals, scores = (less_means(less_means(values, seeds), methods) for values in columns_of(pairs))
    return in_words(signals, scores, lost=len(set(seeds)) + len(set(methods)) - 2)


def columns_of(pairs: Sequence[Pair]) -> tuple[list[float], list[float]]:
    """Return signals and scores."""
    return [one.signal for one in pairs], [one.score for one in pairs]


def less_means(values: Sequence[float], groups: Sequence[Hashable]) -> list[float]:
    """Return each value less the mean of its group, rounded so that equal ones stay equal."""
    means = dict(zip(dict.fromkeys(groups), means_of(values, groups), strict=True))
    return [round(value - means[group], 9) for value, group in zip(values, groups, strict=True)]


def means_of(values: Sequence[float], groups: Sequence[Hashable]) -> list[float]:
    """Return the mean of each group, in order of first appearance."""
    return [
        statistics.fmean(value for value, own in zip(values, groups, strict=True) if own == group)
        for group in dict.fromkeys(groups)
    ]


def in_words(signals: Sequence[float], scores: Sequence[float], *, lost: int) -> str:
    """Return a rank correlation with its interval; `lost` degrees of freedom went into means."""
    count = len(signals)
    if count - lost < FEWEST or len(set(signals)) < 2 or len(set(scores)) < 2:
        return "too few"
    found = min(max(statistics.correlation(ranks(signals), ranks(scores)), -0.9999), 0.9999)
    half = 1.96 * math.sqrt(1.06 / (count - lost - 3))  # Fieller, Hartley and Pearson, 1957
    low, high = (math.tanh(math.atanh(found) + side * half) for side in (-1, 1))
    text = f"{found:+.2f} [{low:+.2f}, {high:+.2f}]"
    return f"{f'**{text}**' if low > 0 or high < 0 else text} (n = {count})"


def ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value, equal ones sharing their mean rank."""
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]
