"""Measures the mean and standard deviation of each channel over some images."""

from __future__ import annotations

import torch

from dovetail.data.loader import IMAGE_SECONDS
from dovetail.data.reading.deadline import deadline
from dovetail.data.reading.decode import UnreadableError
from dovetail.data.reading.values import all_levels
from dovetail.data.sources import ImageSource
from dovetail.views.plan import ViewPlan

LOOKED_AT = 64  # images
LEAST = 1e-3  # lower bound of a deviation: a band may be empty in all images

Statistics = tuple[tuple[float, ...], tuple[float, ...]]


def measured(source: ImageSource, channels: int, *, seed: int) -> Statistics | None:
    """Return the mean and the standard deviation of each channel, for values in [0, 1], over the first images of a run.

    Args:
        source: Image source.
        channels: Number of channels that images are decoded with.
        seed: Seed of the run, which decides which images come first.

    Returns:
        Mean and standard deviation, rounded to 4 digits; None if none of the images can be read.
    """
    total, squares = torch.zeros(channels, dtype=torch.float64), torch.zeros(channels, dtype=torch.float64)
    count = 0
    for index in source.order(seed=seed, epoch=0)[0 : min(LOOKED_AT, source.num_images)].tolist():
        try:
            source.fetch(index)
            with deadline(IMAGE_SECONDS), all_levels():
                pixels = source.open(index, channels).decode(1).double().flatten(1) / 255  # [C, H W]
        except UnreadableError:
            continue
        total += pixels.mean(dim=1)
        squares += pixels.square().mean(dim=1)
        count += 1
    if not count:
        return None
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt().clamp(min=LEAST)
    return tuple(rounded(mean)), tuple(rounded(std))


def rounded(values: torch.Tensor) -> list[float]:
    """Return the values rounded to 4 significant digits, as they are printed and saved."""
    return [float(f"{value:.4g}") for value in values.tolist()]


def needs_measuring(plan: ViewPlan, channels: int) -> bool:
    """Return whether a plan lacks statistics for images with this number of channels."""
    return len(plan.mean) != channels or len(plan.std) != channels
