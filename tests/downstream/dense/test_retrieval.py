"""Retrieval against scikit-learn's nearest neighbours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

from dovetail.downstream.dense import DenseOptions
from dovetail.downstream.dense.retrieval import build_bank
from tests.downstream.dense.test_linear import pool_of


def test_shares_are_those_of_the_nearest_cells_weighted_by_similarity() -> None:
    generator = torch.Generator().manual_seed(0)
    cells, queries = torch.randn(60, 7, generator=generator), torch.randn(1, 7, 4, 5, generator=generator)
    shares = torch.rand(60, 3, generator=generator)
    bank = build_bank(pool_of(cells, shares, 3), range(3), options=DenseOptions(k=9, temperature=0.1))
    found = bank.class_maps(queries)
    flat = queries[0].flatten(1).T.numpy()
    distance, index = NearestNeighbors(n_neighbors=9, metric="cosine").fit(cells.numpy()).kneighbors(flat)
    weight = np.exp((1 - distance) / 0.1)
    weight /= weight.sum(1, keepdims=True)
    whole = (shares / shares.sum(1, keepdim=True)).numpy()
    expected = (whole[index] * weight[..., None]).sum(1)
    assert found.shape == (1, 3, 4, 5)
    assert found[0].flatten(1).T.numpy() == pytest.approx(expected, abs=1e-5)


def test_one_neighbour_is_a_nearest_neighbour_classifier() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(4, (80,), generator=generator)
    cells, queries = torch.randn(80, 6, generator=generator), torch.randn(2, 6, 5, 5, generator=generator)
    shares = torch.nn.functional.one_hot(labels, 4).float()
    bank = build_bank(pool_of(cells, shares, 4), range(4), options=DenseOptions(k=1))
    reference = KNeighborsClassifier(1, metric="cosine").fit(cells.numpy(), labels.numpy())
    flat = queries.permute(0, 2, 3, 1).reshape(-1, 6).numpy()
    assert bank.class_maps(queries).argmax(1).flatten().tolist() == reference.predict(flat).tolist()


def test_the_bank_is_no_larger_than_asked_for() -> None:
    pool = pool_of(torch.randn(60, 2), torch.ones(60, 1), 3)
    assert len(build_bank(pool, [0, 2], options=DenseOptions(memory=10)).keys) == 10
    assert build_bank(pool, [0], options=DenseOptions(memory=10)).k == 10
