"""The probe agrees with scikit-learn's logistic regression; the rate is chosen on held-out training images."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from dovetail.downstream.probe.linear import ProbeOptions, choose_rate, train_probes
from tests.downstream.probe.test_knn import blobs


def test_converges_to_scikit_learns_solution() -> None:
    features, labels = blobs(120, 0)
    decay = 0.05
    options = ProbeOptions(classes=5, epochs=600, batch_size=120, weight_decay=decay)
    probe = train_probes(features, labels, [0.5], options)
    inputs = ((features - probe.mean) / probe.std).double().numpy()
    theirs = LogisticRegression(C=1 / (decay * len(features)), tol=1e-8, max_iter=1000).fit(inputs, labels.numpy())
    ours = probe.logits(features)[0].softmax(1).double().numpy()
    assert np.abs(ours - theirs.predict_proba(inputs)).max() < 1e-3
    queries, truth = blobs(200, 1)
    right = float((probe.predictions(queries)[0] == truth).float().mean())
    other = theirs.score(((queries - probe.mean) / probe.std).double().numpy(), truth.numpy())
    assert abs(right - other) < 0.011


def test_all_rates_are_trained_as_if_alone() -> None:
    features, labels = blobs(60, 0)
    options = ProbeOptions(classes=5, epochs=5, batch_size=16, weight_decay=0.01)
    both = train_probes(features, labels, [0.1, 1.0], options)
    alone = train_probes(features, labels, [1.0], options)
    assert torch.allclose(both.weight[1], alone.weight[0], atol=1e-6)
    assert not torch.allclose(both.weight[0], both.weight[1])


def test_a_rate_too_small_to_learn_is_not_chosen() -> None:
    features, labels = blobs(200, 0)
    options = ProbeOptions(classes=5, epochs=20, batch_size=64, rates=(1e-7, 0.1), weight_decay=0.01)
    rate, accuracy = choose_rate(features.roll(3, 1), labels, options)
    assert set(accuracy) == {1e-7, 0.1}
    assert accuracy[rate] == max(accuracy.values())
