"""Scores against a confusion matrix worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from dovetail.downstream.segment.metrics import ConfusionMatrix
from dovetail.errors import DovetailError


def test_scores_by_hand() -> None:
    matrix = ConfusionMatrix(3)
    truth = torch.tensor([[0, 0, 0, 1], [1, 1, 255, 255]])
    predicted = torch.tensor([[0, 0, 1, 1], [1, 0, 2, 0]])
    matrix.add(predicted, truth)
    assert matrix.counts.tolist() == [[2, 1, 0], [1, 2, 0], [0, 0, 0]]
    scores = matrix.scores()
    # Both classes: 2 right of a union of 4. Class 2 occurs neither in labelled truth nor in predictions that count.
    assert scores.iou[:2] == pytest.approx((0.5, 0.5))
    assert math.isnan(scores.iou[2])
    assert scores.miou == pytest.approx(0.5)
    assert scores.accuracy == pytest.approx(4 / 6)
    assert scores.mean_accuracy == pytest.approx(2 / 3)
    assert scores.pixels == 6


def test_class_only_predicted_counts_in_miou_but_not_in_mean_accuracy() -> None:
    matrix = ConfusionMatrix(2)
    matrix.add(torch.tensor([0, 1]), torch.tensor([0, 0]))
    scores = matrix.scores()
    assert scores.miou == pytest.approx((0.5 + 0.0) / 2)
    assert scores.mean_accuracy == pytest.approx(0.5)


def test_perfect_prediction_scores_one_over_several_additions() -> None:
    matrix = ConfusionMatrix(4)
    for seed in range(3):
        truth = torch.randint(0, 4, (2, 8, 8), generator=torch.Generator().manual_seed(seed))
        matrix.add(truth, truth)
    scores = matrix.scores()
    assert (scores.miou, scores.accuracy, scores.mean_accuracy) == (1.0, 1.0, 1.0)
    assert scores.pixels == 3 * 2 * 64


def test_label_beyond_the_classes_is_named() -> None:
    with pytest.raises(DovetailError, match=r"truth contains label 7.*3 classes"):
        ConfusionMatrix(3).add(torch.tensor([0]), torch.tensor([7]))
    with pytest.raises(DovetailError, match="prediction contains label 3"):
        ConfusionMatrix(3).add(torch.tensor([3]), torch.tensor([0]))


def test_differing_shapes_are_refused() -> None:
    with pytest.raises(DovetailError, match="resize"):
        ConfusionMatrix(3).add(torch.zeros(2, 2), torch.zeros(2, 3))


def test_nothing_counted_is_refused() -> None:
    matrix = ConfusionMatrix(2)
    matrix.add(torch.tensor([0]), torch.tensor([255]))
    with pytest.raises(DovetailError, match="There are no labelled pixels"):
        matrix.scores()


def test_intervals_draw_images() -> None:
    generator = torch.Generator().manual_seed(0)
    alike, apart = ConfusionMatrix(2), ConfusionMatrix(2)
    for index in range(40):
        truth = torch.randint(0, 2, (64,), generator=generator)
        alike.add(torch.where(torch.arange(64) < 48, truth, 1 - truth), truth)  # each image is right at 48 of 64
        apart.add(truth if index % 4 else 1 - truth, truth)  # three of four images are right
    expected = [apart.scores().miou, apart.scores().accuracy, apart.scores().mean_accuracy]
    for (low, high), value in zip(apart.intervals(), expected, strict=True):
        assert low < value < high
    low, high = apart.intervals()[1]
    spread = 1.96 * (0.75 * 0.25 / 40) ** 0.5
    assert (low, high) == (pytest.approx(0.75 - spread, abs=0.03), pytest.approx(0.75 + spread, abs=0.03))
    assert alike.intervals()[1] == (pytest.approx(0.75), pytest.approx(0.75))


def test_moves_give_the_error_that_the_bootstrap_finds() -> None:
    rng = np.random.default_rng(0)
    matrix = ConfusionMatrix(3)
    for _ in range(200):
        truth = torch.from_numpy(rng.integers(0, 3, (8, 8)))
        right = torch.from_numpy(rng.random((8, 8)) < rng.uniform(0.3, 1.0))
        matrix.add(torch.where(right, truth, (truth + 1) % 3), truth)
    moves = np.array(matrix.moves())
    assert moves.sum() == pytest.approx(0.0, abs=1e-9)
    error = np.sqrt(200 / 199 * np.square(moves).sum())
    interval = matrix.intervals(draws=4000)[0]
    assert interval is not None
    assert error == pytest.approx((interval[1] - interval[0]) / (2 * 1.96), rel=0.08)
