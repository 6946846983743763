"""Verdict on a table of starts: paired differences between starts over seeds.

All starts are fine-tuned with the same seeds, which draw the same labelled images, random weights and augmentations. So
differences between two starts are paired by seed, and their mean has Student's interval with n - 1 degrees of freedom:

    half-width = t(0.975, n - 1) * deviation / sqrt(n)

All seeds use the same test images, so the interval is for other seeds on these images. The number of images that would
show the difference on other images, too, follows from its variance over images. With d_i the mean over seeds of the
influence of image i on the difference of the scores (see `dovetail.downstream.segment.metrics.moves_of`),

    images = N (1.96 SE / |difference|)^2,    SE^2 = N / (N - 1) sum_i (d_i - mean)^2
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dovetail.downstream.table.results import FEWEST_DRAWN, Row, half_width
from dovetail.errors import RunError, counted

PRE_TRAINED = ("all", "encoder", "decoder")  # sorted by how much of the run they load
OTHERS = ("imagenet", "random")  # alternatives without a run, better ones first
NAMES = {"imagenet": "ImageNet weights", "random": "random weights", "encoder": "the pre-trained encoder"}
MOST_SEEDS, MOST_IMAGES = 1000, 1_000_000
NORMAL = 1.96  # half-width of the normal distribution's 95 % interval in standard deviations
ENOUGH_SEEDS = 5
FEWEST_STEPS = 200  # shorter fine-tunings say little about their start
FIGURES = 1e-6  # smaller differences of scores are rounding errors


PerImage = Sequence[Sequence[float]]
"""Influence of each test image on a score, one list per seed."""


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences between two starts, in percentage points.

    Attributes:
        mean: Mean of the first start minus the second.
        half_width: Half-width of the 95 % interval, or None for fewer than three pairs.
        seeds: Number of pairs.
        needed: Number of seeds that would make a difference of this size and spread significant, None above 1,000.
        images: Number of test images, or 0 if the variance over images is unknown.
        images_needed: Number of test images that would show the difference on other images, infinite above a million.
    """

    mean: float
    half_width: float | None
    seeds: int
    needed: int | None = None
    images: int = 0
    images_needed: float = math.inf

    @property
    def shown(self) -> bool:
        """Whether the interval excludes zero."""
        return self.half_width is not None and abs(self.mean) > max(self.half_width, FIGURES)


def paired(
    first: Sequence[float], second: Sequence[float], per_image: tuple[PerImage, PerImage] | None = None
) -> Difference:
    """Return the difference of two starts from their scores in [0, 1] for the same seeds.

    `per_image` has the influence of test images on the scores of both, one list per seed.

    Raises:
        RunError: The numbers of seeds differ.
    """
    if len(first) != len(second):
        raise RunError(
            f"{len(first)} and {len(second)} scores cannot be paired; evaluate both starts with the same seeds."
        )
    differences = 100 * (np.asarray(first, dtype=float) - np.asarray(second, dtype=float))
    mean, count = float(differences.mean()), len(differences)
    if count < FEWEST_DRAWN:
        return Difference(mean, None, count)
    deviation = float(differences.std(ddof=1))
    needed = next((n for n in range(FEWEST_DRAWN, MOST_SEEDS + 1) if half_width(deviation, n) < abs(mean)), None)
    images, images_needed = images_for(mean, *per_image) if per_image is not None else (0, math.inf)
    return Difference(mean, half_width(deviation, count), count, needed, images, images_needed)


def images_for(mean: float, first: PerImage, second: PerImage) -> tuple[int, float]:
    """Return the number of test images, and the number that would show a mean difference on other images.

    The first is 0 if some images are missing, and the second is infinite above a million.
    """
    sizes = {len(one) for one in (*first, *second)}
    if len(sizes) != 1 or min(sizes) < FEWEST_DRAWN:
        return 0, math.inf
    moved = 100 * (np.mean(first, axis=0) - np.mean(second, axis=0))
    count = len(moved)
    error = math.sqrt(count / (count - 1) * float(np.square(moved - moved.mean()).sum()))
    needed = count * (NORMAL * error / max(abs(mean), FIGURES)) ** 2
    return count, max(math.ceil(needed), FEWEST_DRAWN) if needed <= MOST_IMAGES else math.inf


def verdict(
    rows: Sequence[Row], per_image: Mapping[tuple[str, float], PerImage] | None = None, *, steps: Collection[int] = ()
) -> tuple[str, ...]:
    """Return the verdict on pre-training: one sentence for each number of labelled images and comparison.

    Args:
        rows: Rows with `start`, `fraction` and `images` in their settings, and the same seeds for each start.
        per_image: Influence of test images on the main score, by start and fraction.
        steps: Numbers of steps of the trials, if known.

    Returns:
        Sentences, or nothing if there are no starts to compare.
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
        sentence(found, what, NAMES.get(other, other), images=images, score=score)
        for start, what, other in comparisons
        for images, score, found in differences(rows, start, other, per_image or {})
    ]
    signs = any("±" in one for one in told)
    return (
        *told,
        *(too_short(steps) if told else ()),
        *(["± is half of the 95 % interval of the mean of paired differences."] * signs),
    )


def too_short(steps: Collection[int]) -> tuple[str, ...]:
    """Return a sentence if trials took so few steps that their scores say little about pre-training; else nothing."""
    few = min(steps, default=FEWEST_STEPS)
    if few >= FEWEST_STEPS:
        return ()
    which = "The trials" if len({*steps}) == 1 else "The shortest trials"
    return (
        f"{which} took {counted(few, 'step')}. Fine-tunings of fewer than {FEWEST_STEPS} steps say little about "
        f"pre-training; use --steps {FEWEST_STEPS} or more.",
    )


def differences(
    rows: Sequence[Row], start: str, other: str, per_image: Mapping[tuple[str, float], PerImage]
) -> Iterator[tuple[int, str, Difference]]:
    """Yield the difference of two starts for each number of images: images, name of the score, difference."""
    for row in rows:
        if row.setting.get("start") != start:
            continue
        fraction = row.setting.get("fraction", 1.0)
        beside = [
            one for one in rows if one.setting.get("start") == other and one.setting.get("fraction", 1.0) == fraction
        ]
        name = next(iter(row.scores))
        images = [per_image.get((one, fraction), ()) for one in (start, other)]
        for one in beside:
            if name in one.scores and len(one.scores[name].values) == len(row.scores[name].values):
                first, second = row.scores[name].values, one.scores[name].values
                yield int(row.setting["images"]), name, paired(first, second, (images[0], images[1]))


def sentence(
    found: Difference,
    what: str,
    other: str,
    *,
    images: int,
    score: str,
    more_seeds: str = f"use --seeds {ENOUGH_SEEDS}",
) -> str:
    """Return a sentence about a difference.

    Args:
        found: Difference.
        what: What is compared, such as "pre-training".
        other: Baseline, such as "ImageNet weights".
        images: Number of labelled images.
        score: Name of the score.
        more_seeds: How to get more seeds.
    """
    beginning = f"With {counted(images, 'labelled image')} "
    if found.half_width is None:
        return (
            f"{beginning}{what} is {found.mean:+.1f} {score} from {other} with {counted(found.seeds, 'seed')}, which "
            f"is too few to tell; {more_seeds}."
        )
    size = f"{found.mean:+.1f} ± {found.half_width:.1f} {score}"
    seeds = f"({counted(found.seeds, 'seed')}, paired)"
    if found.shown and found.mean > 0:
        return f"{beginning}{what} gained {size} over {other} {seeds}: it helped."
    if found.shown:
        return f"{beginning}{what} changed the score by {size} against {other} {seeds}: it harmed."
    needed = f"about {found.needed:,} seeds" if found.needed else f"more than {MOST_SEEDS:,} seeds"
    return (
        f"{beginning}no difference between {what} and {other} can be shown: {size} {seeds}. To show a difference of "
        f"this size, {needed}{images_in_words(found)} would be needed."
    )


def images_in_words(found: Difference) -> str:
    """Return a phrase with the number of test images that a difference would need, or an empty string."""
    if not found.images:
        return ""
    if found.images_needed <= found.images:
        return f" on these {counted(found.images, 'test image')}"
    many = f"about {found.images_needed:,}" if found.images_needed < math.inf else f"more than {MOST_IMAGES:,}"
    return f" and, for it to hold on other images, {many} test images (there are {found.images:,})"
