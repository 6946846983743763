"""Clusters against scikit-learn's k-means and principal components, matching against every permutation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA

from dovetail.downstream.dense.clusters import Clusters, fit_projection, kmeans, matching, nearest_centres


def points(count: int = 300, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(5, 4, generator=generator)
    return centres[torch.randint(5, (count,), generator=generator)] + torch.randn(count, 4, generator=generator)


def test_lloyds_algorithm_from_the_same_start_is_that_of_scikit_learn() -> None:
    data, start = points(), points(5, seed=3)
    centres, inertia = kmeans(data, 5, seed=0, centres=start, rounds=300)
    reference = KMeans(5, init=start.numpy(), n_init=1, algorithm="lloyd", tol=0, max_iter=300).fit(data.numpy())
    assert centres.numpy() == pytest.approx(reference.cluster_centers_, abs=1e-4)
    assert inertia == pytest.approx(reference.inertia_, rel=1e-5)


def test_starts_are_good_and_the_best_is_kept() -> None:
    data = points()
    best = min(KMeans(5, n_init=20, random_state=0).fit(data.numpy()).inertia_ for _ in range(1))
    assert kmeans(data, 5, seed=0)[1] == pytest.approx(best, rel=1e-3)
    assert kmeans(data, 5, seed=0)[1] <= min(kmeans(data, 5, seed=0, starts=1)[1] for _ in range(1))
    again, _ = kmeans(data, 5, seed=0)
    assert torch.equal(again, kmeans(data, 5, seed=0)[0])


def test_a_centre_without_points_gets_some() -> None:
    data = torch.tensor([[0.0], [0.1], [10.0], [10.1], [20.0]])
    centres, inertia = kmeans(data, 3, seed=0, centres=torch.tensor([[0.0], [10.0], [1000.0]]))
    assert sorted(round(float(one), 2) for one in centres.flatten()) == [0.05, 10.05, 20.0]
    assert inertia == pytest.approx(0.01, abs=1e-4)
    distance, index = nearest_centres(data, centres)
    assert index.tolist() == [0, 0, 1, 1, 2]
    assert distance.sum() == pytest.approx(0.01, abs=1e-4)


def test_projection_is_that_of_standardised_principal_components() -> None:
    data = points() @ torch.randn(4, 9, generator=torch.Generator().manual_seed(1)) + 5
    projected = fit_projection(data, 3)(data).numpy()
    standard = ((data - data.mean(0)) / data.std(0, correction=0)).numpy()
    expected = PCA(3).fit_transform(standard)
    signs = np.sign((projected * expected).sum(0))
    assert projected * signs == pytest.approx(expected, abs=1e-3)
    assert fit_projection(data, 50)(data).shape == (300, 9)


def test_hungarian_matching_is_the_best_permutation() -> None:
    counts = torch.randint(0, 50, (5, 5), generator=torch.Generator().manual_seed(2))
    iou = counts / (counts.sum(1, keepdim=True) + counts.sum(0, keepdim=True) - counts)
    best = max(itertools.permutations(range(5)), key=lambda order: sum(float(iou[k, c]) for k, c in enumerate(order)))
    assert matching(counts).tolist() == list(best)


def test_more_clusters_than_classes_go_to_the_class_of_most_pixels() -> None:
    assert matching(torch.tensor([[1, 5], [9, 2], [0, 0], [3, 4]])).tolist() == [1, 0, 0, 1]


def test_cells_take_the_nearest_centre() -> None:
    data = points(32)
    clusters = Clusters(fit_projection(data, 4), kmeans(fit_projection(data, 4)(data), 5, seed=0)[0])
    maps = data.T.reshape(4, 2, 4, 4).permute(1, 0, 2, 3)
    expected = nearest_centres(clusters.projection(data), clusters.centres)[1].reshape(2, 4, 4)
    assert torch.equal(clusters.label_maps(maps), expected)
