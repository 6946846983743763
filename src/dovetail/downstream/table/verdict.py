"""What a table of starting points says, in sentences: paired differences between starts, seed by seed.

Every start is fine-tuned with the same seeds, which draw the same labelled images, new weights and augmentations. So
the difference of two starts is taken within each seed, and its mean has Student's interval of n - 1 degrees of freedom:

    half-width = t(0.975, n - 1) * deviation / sqrt(n)

The seeds share their test images, so this says what other seeds would find on these images. How many images it would
take for a difference to hold on others too follows from how it spreads over images: with d_i the mean over seeds of
what image i adds to the difference of the scores (see `dovetail.downstream.segment.metrics.moves_of`),

    images = N (1.96 SE / |difference|)^2,    SE^2 = N / (N - 1) sum_i (d_i - mean)^2
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dovetail.downstream.table.results import FEWEST_DRAWN, Row
from dovetail.errors import RunError, counted

PRE_TRAINED = ("all", "encoder", "decoder")  # by how much of the run they load
OTHERS = ("imagenet", "random")  # what a user would start from without a run, the better first
NAMES = {"imagenet": "ImageNet weights", "random": "random weights", "encoder": "the pre-trained encoder"}
MOST_SEEDS, MOST_IMAGES = 1000, 1_000_000
NORMAL = 1.96  # half of the normal distribution's 95 % interval, in deviations
ENOUGH_SEEDS = 5
FIGURES = 1e-6  # of a score: differences below it are those of rounding


PerImage = Sequence[Sequence[float]]
"""How far each test image moves a score, one list for each seed."""


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences between two starts, in points of a per cent.

    Attributes:
        mean: Of the first start less the second.
        half_width: Of the 95 % interval; None for fewer than three pairs.
        seeds: Number of pairs.
        needed: Seeds from which on a difference of this size and spread would show; None beyond 1,000.
        images: Test images; 0 where it is not known how the difference spreads over them.
        images_needed: Test images from which on it would hold for others; infinite beyond a million.
    """

    mean: float
    half_width: float | None
    seeds: int
    needed: int | None = None
    images: int = 0
    images_needed: float = math.inf

    @property
    def shown(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.half_width is not None and abs(self.mean) > max(self.half_width, FIGURES)


def paired(
    first: Sequence[float], second: Sequence[float], per_image: tuple[PerImage, PerImage] | None = None
) -> Difference:
    """Return the difference of two starts from their scores of the same seeds, as shares in [0, 1].

    `per_image` are what test images add to the scores of both, one list for each seed.

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
    images, images_needed = images_for(mean, *per_image) if per_image is not None else (0, math.inf)
    return Difference(mean, half_width(deviation, count), count, needed, images, images_needed)


def images_for(mean: float, first: PerImage, second: PerImage) -> tuple[int, float]:
    """Return how many test images there are, and from how many on a mean difference in points would hold for others.

    No images where some are missing, infinitely many beyond a million.
    """
    sizes = {len(one) for one in (*first, *second)}
    if len(sizes) != 1 or min(sizes) < FEWEST_DRAWN:
        return 0, math.inf
    moved = 100 * (np.mean(first, axis=0) - np.mean(second, axis=0))
    count = len(moved)
    error = math.sqrt(count / (count - 1) * float(np.square(moved - moved.mean()).sum()))
    needed = count * (NORMAL * error / max(abs(mean), FIGURES)) ** 2
    return count, max(math.ceil(needed), FEWEST_DRAWN) if needed <= MOST_IMAGES else math.inf


def half_width(deviation: float, count: int) -> float:
    """Return half the width of Student's 95 % interval of a mean of `count` values."""
    from scipy.stats import t  # takes a while to import

    return float(t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)


def verdict(rows: Sequence[Row], per_image: Mapping[tuple[str, float], PerImage] | None = None) -> tuple[str, ...]:
    """Return what the table says of pre-training, one sentence for each number of labelled images and comparison.

    Args:
        rows: With `start`, `fraction` and `images` among their settings, each start with the same seeds.
        per_image: What test images add to the first score, by start and fraction.

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
        sentence(found, what, NAMES.get(other, other), images=images, score=score)
        for start, what, other in comparisons
        for images, score, found in differences(rows, start, other, per_image or {})
    ]
    signs = any("±" in one for one in told)
    return (*told, *(["± is half of the 95 % interval of the mean of paired differences."] * signs))


def differences(
    rows: Sequence[Row], start: str, other: str, per_image: Mapping[tuple[str, float], PerImage]
) -> Iterator[tuple[int, str, Difference]]:
    """Yield the difference of two starts for each number of images: images, the first score's name, the difference."""
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
        f"{beginning}no difference between {what} and {other} can be shown: {size} {seeds}. To show a difference of "
        f"this size, {needed}{images_in_words(found)} would be needed."
    )


def images_in_words(found: Difference) -> str:
    """Return how many test images a difference would need beside seeds; nothing where that is not known."""
    if not found.images:
        return ""
    if found.images_needed <= found.images:
        return f" on these {counted(found.images, 'test image')}"
    many = f"about {found.images_needed:,}" if found.images_needed < math.inf else f"more than {MOST_IMAGES:,}"
    return f" and, for it to hold on other images, {many} test images (there are {found.images:,})"
