"""kNN agrees with scikit-learn's, whatever the chunks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from dovetail.downstream.probe.knn import knn_predictions
from dovetail.errors import DovetailError


def blobs(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return overlapping clouds of five classes."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, 12, generator=torch.Generator().manual_seed(9))
    labels = torch.randint(5, (count,), generator=generator)
    return centres[labels] + 1.2 * torch.randn(count, 12, generator=generator), labels


@pytest.mark.parametrize("chunks", [(512, 65536), (7, 13)])
@pytest.mark.parametrize("k", [1, 10, 37])
def test_votes_as_scikit_learn_with_the_same_weights(chunks: tuple[int, int], k: int) -> None:
    bank, labels = blobs(150, 0)
    queries, truth = blobs(80, 1)
    ours = knn_predictions(
        queries, bank, labels, classes=5, k=[k], temperature=0.07, query_chunk=chunks[0], bank_chunk=chunks[1]
    )[k]
    theirs = KNeighborsClassifier(
        k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
    )
    theirs.fit(bank.double().numpy(), labels.numpy())
    assert np.array_equal(ours.numpy(), theirs.predict(queries.double().numpy()))
    assert 0.5 < float((ours == truth).float().mean()) < 1.0


def test_every_query_is_counted_when_done() -> None:
    bank, labels = blobs(30, 0)
    done: list[int] = []
    knn_predictions(bank, bank, labels, classes=5, k=[3], query_chunk=12, on_batch=done.append)
    assert done == [12, 12, 6]


def test_nearest_votes_outweigh_a_majority_of_far_ones() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    found = knn_predictions(torch.tensor([[2.0, 0.1]]), bank, torch.tensor([0, 1, 1, 1]), classes=2, k=[4])
    assert found[4].tolist() == [0]


@pytest.mark.parametrize(("k", "temperature"), [([0], 0.07), ([9], 0.07), ([], 0.07), ([1], 0.0)])
def test_refuses_numbers_out_of_range(k: list[int], temperature: float) -> None:
    bank = torch.randn(4, 2)
    with pytest.raises(DovetailError):
        knn_predictions(bank, bank, torch.zeros(4, dtype=torch.int64), classes=1, k=k, temperature=temperature)
