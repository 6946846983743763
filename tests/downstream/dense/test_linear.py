"""The linear head against scikit-learn's logistic regression."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from dovetail.downstream.dense import DenseOptions
from dovetail.downstream.dense.cells import Pool
from dovetail.downstream.dense.linear import Candidate, fit_linear


def pool_of(cells: torch.Tensor, shares: torch.Tensor, images: int) -> Pool:
    """Return a pool of cells [N, C] and shares [N, K], spread evenly over images."""
    each = len(cells) // images
    pool = Pool([each] * images)
    for index in range(images):
        part = slice(index * each, (index + 1) * each)
        pool.add(cells[part], shares[part], torch.arange(each))
    return pool


@pytest.mark.parametrize("soft", [False, True])
def test_it_finds_the_optimum_of_logistic_regression(soft: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (240,), generator=generator)
    cells = torch.randn(3, 5, generator=generator)[labels] + torch.randn(240, 5, generator=generator)
    shares = torch.nn.functional.one_hot(labels, 3).float()
    if soft:
        shares = (0.7 * shares + 0.1) * torch.rand(240, 1, generator=generator)  # some pixels do not count
    decay = 0.01
    options = DenseOptions(lr=(0.3,), weight_decay=(decay,), steps=3000)
    head = fit_linear(pool_of(cells, shares, 4), range(4), classes=3, options=options, seed=0)
    standard = ((cells - cells.mean(0)) / cells.std(0, correction=0)).numpy()
    # A cell of soft labels is one cell for each class, weighted by its share; sklearn's C divides the sum's decay.
    weight = shares.T.flatten().numpy()
    reference = LogisticRegression(C=1 / (decay * float(weight.sum())), tol=1e-8, max_iter=1000)
    reference.fit(np.tile(standard, (3, 1)), np.repeat(np.arange(3), 240), sample_weight=weight)
    ours = head.probe.logits(cells)[0].softmax(1).numpy()
    assert np.abs(ours - reference.predict_proba(standard)).max() < 2e-3
    maps = cells.T.reshape(1, 5, 24, 10)
    assert head.class_maps(maps).flatten(2)[0].T.numpy() == pytest.approx(head.probe.logits(cells)[0].numpy(), abs=1e-5)


def test_candidates_are_chosen_on_the_images_held_out() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (400,), generator=generator)
    cells = torch.randn(400, 40, generator=generator)
    cells[:, 0] += 2.5 * labels
    shares = torch.nn.functional.one_hot(labels, 2).float()
    options = DenseOptions(lr=(1e-6, 0.1), weight_decay=(0.0, 0.1), steps=100)
    head = fit_linear(pool_of(cells, shares, 20), range(20), classes=2, options=options, seed=0)
    assert head.chosen.lr == 0.1
    assert head.at_end
    assert set(head.held_out) == {Candidate(lr, decay) for lr in (1e-6, 0.1) for decay in (0.0, 0.1)}
    assert head.held_out[head.chosen] == max(head.held_out.values())
    # mIoU of those held out, of a classifier that has not seen them
    alone = fit_linear(
        pool_of(cells, shares, 20),
        range(18),
        classes=2,
        options=DenseOptions(lr=(head.chosen.lr,), weight_decay=(head.chosen.weight_decay,), steps=100),
        seed=0,
    )
    wrong = (alone.probe.predictions(cells[360:])[0], labels[360:])
    iou = [float(((wrong[0] == c) & (wrong[1] == c)).sum() / ((wrong[0] == c) | (wrong[1] == c)).sum()) for c in (0, 1)]
    assert head.held_out[head.chosen] == pytest.approx(sum(iou) / 2)


def test_one_labelled_image_is_enough() -> None:
    cells, shares = torch.randn(20, 3, generator=torch.Generator().manual_seed(0)), torch.eye(2).repeat(10, 1)
    head = fit_linear(pool_of(cells, shares, 1), [0], classes=2, options=DenseOptions(steps=5), seed=0)
    assert head.held_out == {}
    assert head.chosen == Candidate(0.1, 1e-2)
