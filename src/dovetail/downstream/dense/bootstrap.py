"""mIoU with a bootstrap confidence interval over test images.

Shapes: S seeds, N test images, K classes; counts [N, 3, K] are right, true and predicted pixels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from dovetail.downstream.segment.metrics import scores_of
from dovetail.downstream.table.results import Score
from dovetail.errors import DataError

DRAWS = 1000


def miou_score(counts: Sequence[Tensor], *, seed: int = 0, draws: int = DRAWS) -> Score:
    """Return the mIoU: mean, values and standard deviation over seeds, and the 95 % interval over test images.

    The interval is that of the mean over seeds when test images are resampled (with the same draw for all seeds).

    Args:
        counts: Pixel counts [N, 3, K] of each seed.
        seed: Seed of the bootstrap.
        draws: Number of bootstrap draws.
    """
    values = tuple(float(scores_of(one.double().sum(0))[0]) for one in counts)
    low, high = _interval(drawn(counts, seed=seed, draws=draws))
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Score(float(np.mean(values)), values, deviation, low, high, "images")


def difference(first: Sequence[Tensor], second: Sequence[Tensor], *, seed: int = 0, draws: int = DRAWS) -> Score:
    """Return the mIoU of `first` minus that of `second`, with the 95 % interval under the same draws of test images.

    The paired difference has a much smaller interval than the two scores, because hard images are hard for both.

    Args:
        first: Pixel counts [N, 3, K] of each seed (`DenseScore.counts`).
        second: Pixel counts of another evaluation on the same test images.
        seed: Seed of the bootstrap.
        draws: Number of bootstrap draws.

    Raises:
        DataError: The numbers of seeds, images or classes differ.
    """
    if len(first) != len(second) or first[0].shape != second[0].shape:
        raise DataError(
            f"Scores of shapes {len(first)} x {tuple(first[0].shape)} and {len(second)} x {tuple(second[0].shape)} "
            "cannot be paired; evaluate both on the same test images and seeds."
        )
    values = tuple(
        float(scores_of(one.double().sum(0))[0] - scores_of(other.double().sum(0))[0])
        for one, other in zip(first, second, strict=True)
    )
    gaps = drawn(first, seed=seed, draws=draws) - drawn(second, seed=seed, draws=draws)
    low, high = _interval(gaps)
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Score(float(np.mean(values)), values, deviation, low, high, "images")


def drawn(counts: Sequence[Tensor], *, seed: int, draws: int) -> Tensor:
    """Return the mean mIoU over seeds for each draw of test images, [draws]. NaN for draws without labelled pixels."""
    total = len(counts[0])
    times = np.random.default_rng((seed, 3)).multinomial(total, np.full(total, 1 / total), size=draws)
    often = torch.from_numpy(times).double()
    per_seed = [scores_of((often @ one.double().flatten(1)).view(draws, *one.shape[1:]))[:, 0] for one in counts]
    return torch.stack(per_seed).mean(0)


def _interval(values: Tensor) -> tuple[float, float]:
    low, high = np.nanpercentile(values.numpy(), [2.5, 97.5])
    return float(low), float(high)
