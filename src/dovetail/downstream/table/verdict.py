"""What a table of starting points says, in sentences: paired differences between starts, seed by seed.

Every start is fine-tuned with the same seeds, which draw the same labelled images, new weights and augmentations. So
the difference of two starts is taken within each seed, and its mean has Student's interval of n - 1 degrees of freedom:

    half-width = t(0.975, n - 1) * deviation / sqrt(n)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from dovetail.downstream.table.results import FEWEST_DRAWN, Row
from dovetail.errors import RunError, counted

PRE_TRAINED = ("all", "encoder", "decoder")  # by how much of the run they load
OTHERS = ("imagenet", "random")  # what a user would start from without a run, the better first
NAMES = {"imagenet": "ImageNet weights", "random": "random weights", "encoder": "the pre-trained encoder"}
MOST_SEEDS = 1000
ENOUGH_SEEDS = 5
FIGURES = 1e-6  # of a score: differences below it are those of rounding


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences between two starts, in points of a per cent.

    Attributes:
        mean: Of the first start less the second.
        half_width: Of the 95 % interval; None for fewer than three pairs.
        seeds: Number of pairs.
        needed: Seeds from which on a difference of this size and spread would show; None beyond 1,000.
    """

    mean: float
    half_width: float | None
    seeds: int
    needed: int | None = None

    @property
    def shown(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.half_width is not None and abs(self.mean) > max(self.half_width, FIGURES)


def paired(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Return the difference of two starts from their scores of the same seeds, as shares in [0, 1].

    Raises:
        RunError: For other numbers of seeds.
    """
    if len(first) != len(second):
        raise RunError(f"{len(first)} scores and {len(second)} are no pairs; measure both starts with the same seeds.")
    differences = 100 * (np.asarray(first, dtype=float) - np.asarray(second, dtype=float))
    mean, count = float(differences.mean()), len(differences)
    if count < FEWEST_DRAWN:
        return Difference(mean, None, count)
    deviation = float(differences.std(ddof=1))
    needed = next((n for n in range(FEWEST_DRAWN, MOST_SEEDS + 1) if half_width(deviation, n) < abs(mean)), None)
    return Difference(mean, half_width(deviation, count), count, needed)


def half_width(deviation: float, count: int) -> float:
    """Return half the width of Student's 95 % interval of a mean of `count` values."""
    from scipy.stats import t  # takes a while to import

    return float(t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)


def verdict(rows: Sequence[Row]) -> tuple[str, ...]:
    """Return what the table says of pre-training, one sentence for each number of labelled images and comparison.

    Args:
        rows: With `start` and `images` among their settings, each start with the same seeds.

    Returns:
        Nothing where no start loads a run, or no other start stands beside it.
    """
    starts = list(dict.fromkeys(str(row.setting.get("start")) for row in rows))
    loaded = next((start for start in PRE_TRAINED if start in starts), None)
    if loaded is None:
        return ()
    others = [start for start in starts if start not in PRE_TRAINED]
    rank = [start for start in others if start not in OTHERS] + [start for start in OTHERS if start in others]
    comparisons = [(loaded, "pre-training", rank[0])] if rank else []
    if {"all", "encoder"} <= {*starts}:
        comparisons.append(("all", "the pre-trained decoder", "encoder"))
    told = [
        sentence(paired(first, second), what, NAMES.get(other, other), images=images, score=score)
        for start, what, other in comparisons
        for images, score, first, second in pairs(rows, start, other)
    ]
    signs = any("±" in one for one in told)
    return (*told, *(["± is half of the 95 % interval of the mean of paired differences."] * signs))


def pairs(rows: Sequence[Row], start: str, other: str) -> Iterator[tuple[int, str, Sequence[float], Sequence[float]]]:
    """Yield the scores of two starts for each number of images: images, the first score's name, and its values."""
    for row in rows:
        if row.setting.get("start") != start:
            continue
        beside = [
            one
            for one in rows
            if one.setting.get("start") == other and one.setting.get("fraction") == row.setting.get("fraction")
        ]
        name = next(iter(row.scores))
        for one in beside:
            if name in one.scores and len(one.scores[name].values) == len(row.scores[name].values):
                yield int(row.setting["images"]), name, row.scores[name].values, one.scores[name].values


def sentence(found: Difference, what: str, other: str, *, images: int, score: str) -> str:
    """Return a difference in words.

    Args:
        found: The difference.
        what: Is judged, such as "pre-training".
        other: What it is judged against, such as "ImageNet weights".
        images: Labelled images.
        score: Name of the score.
    """
    beginning = f"With {counted(images, 'labelled image')} "
    if found.half_width is None:
        return (
            f"{beginning}{what} is {found.mean:+.1f} {score} from {other} with {counted(found.seeds, 'seed')}, which "
            f"is too few to tell; give --seeds {ENOUGH_SEEDS}."
        )
    size = f"{found.mean:+.1f} ± {found.half_width:.1f} {score}"
    seeds = f"({counted(found.seeds, 'seed')}, paired)"
    if found.shown and found.mean > 0:
        return f"{beginning}{what} gained {size} over {other} {seeds}: it helped."
    if found.shown:
        return f"{beginning}{what} changed the score by {size} against {other} {seeds}: it harmed."
    needed = f"about {found.needed:,} seeds" if found.needed else f"more than {MOST_SEEDS:,} seeds"
    return (
        f"{beginning}no difference between {what} and {other} can be shown: {size} {seeds}. A difference of this size "
        f"would take {needed}."
    )
