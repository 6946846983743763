"""Intervals over test images."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dovetail.downstream.dense.bootstrap import difference, miou_score
from dovetail.downstream.segment.metrics import ConfusionMatrix
from dovetail.errors import DovetailError


def counts(images: int, *, classes: int = 3, seed: int = 0, right: float = 0.7) -> torch.Tensor:
    """Return [N, 3, K] of random predictions, and of their confusion matrix."""
    rng = np.random.default_rng(seed)
    matrix = ConfusionMatrix(classes)
    for _ in range(images):
        truth = rng.integers(0, classes, 200)
        keep = rng.random(200) < rng.uniform(right - 0.2, right + 0.2)
        matrix.add(torch.from_numpy(np.where(keep, truth, rng.integers(0, classes, 200))), torch.from_numpy(truth))
    return torch.stack(matrix.added)


def test_one_seed_gives_the_interval_of_the_confusion_matrix() -> None:
    matrix = ConfusionMatrix(2)
    rng = np.random.default_rng(1)
    for _ in range(12):
        truth, predicted = (torch.from_numpy(rng.integers(0, 2, 50)) for _ in range(2))
        matrix.add(predicted, truth)
    score = miou_score([torch.stack(matrix.added)], seed=4)
    assert score.mean == pytest.approx(matrix.scores().miou)
    assert (score.low, score.high) == pytest.approx(matrix.intervals(seed=4)[0])
    assert score.deviation is None


def test_several_seeds_share_their_draws() -> None:
    parts = [counts(20, seed=seed) for seed in range(3)]
    score = miou_score(parts)
    singles = [miou_score([one]).mean for one in parts]
    assert score.values == pytest.approx(tuple(singles))
    assert score.mean == pytest.approx(np.mean(singles))
    assert score.deviation == pytest.approx(np.std(singles, ddof=1))
    assert score.low is not None
    assert score.high is not None
    assert score.low < score.mean < score.high
    assert miou_score([parts[0]] * 3).low == pytest.approx(miou_score([parts[0]]).low)


def test_paired_differences_are_narrower_than_their_parts() -> None:
    first = counts(30)
    second = first.clone()
    second[:, 0] -= 2  # two right pixels fewer of every class in every image, else the same hard and easy images
    gap, alone = difference([first], [second]), miou_score([first])
    assert gap.mean == pytest.approx(alone.mean - miou_score([second]).mean)
    assert None not in (gap.low, gap.high, alone.low, alone.high)
    assert gap.high - gap.low < 0.2 * (alone.high - alone.low)  # type: ignore[operator]
    assert gap.low > 0  # type: ignore[operator]
    with pytest.raises(DovetailError, match="cannot be paired"):
        difference([first], [counts(29)])
