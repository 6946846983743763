"""Clusters of cells, matched to classes: measures how well frozen features separate classes without training.

1. Cells of all test images are standardised and projected to their first 50 principal components.
2. k-means finds K centres. Every cell is assigned to the nearest one, and the cluster map is resized to the masks
   (nearest neighbour).
3. With as many clusters as classes, clusters are matched to classes so that the sum of IoUs is maximal (Hungarian
   method). With more clusters ("overclustering"), every cluster gets the class of most of its pixels.

Source: LEOPART, https://arxiv.org/abs/2204.13101, section 4 and its published code, which NeCo
(https://arxiv.org/abs/2408.11054) follows: 50 components, at most 50 rounds, the best of 5 starts, K of the number of
classes and 500, the mean over 5 seeds. Departures: masks have the size of the images instead of 100 x 100, centres are
fitted to a sample of at most 30,000 cells, starts are those of k-means++ and the best of 3.

As published, the matching uses the labels of the scored images. With 500 clusters, even random features score far above
zero, so compare with random weights.

Shapes: N cells, C channels, P components, K clusters, L classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from dovetail.downstream.probe.knn import pieces

CHUNK = 16_384
POINTS = 1024
ROUNDS, STARTS = 50, 3


class Projection(NamedTuple):
    """Standardisation and principal components: x -> ((x - mean) / std) @ axes; `axes` are [C, P]."""

    mean: Tensor
    std: Tensor
    axes: Tensor

    def __call__(self, cells: Tensor) -> Tensor:
        """Project cells [N, C] to components [N, P]."""
        return ((cells - self.mean) / self.std) @ self.axes


@dataclass(frozen=True)
class Clusters:
    """Centres [K, P] of projected cells."""

    projection: Projection
    centres: Tensor

    def label_maps(self, maps: Tensor) -> Tensor:
        """Return the cluster [B, h, w] of every cell of maps [B, C, h, w]."""
        batch, _, height, width = maps.shape
        cells = maps.permute(0, 2, 3, 1).flatten(0, 2)
        found = [nearest_centres(self.projection(part), self.centres)[1] for part in pieces(cells, CHUNK)]
        return torch.cat(found).view(batch, height, width)


def fit_projection(cells: Tensor, channels: int) -> Projection:
    """Fit a projection of cells [N, C] to their first `channels` principal components (at most C)."""
    mean, std = cells.mean(0), cells.std(0, correction=0).clamp(min=1e-6)
    standard = (cells - mean) / std
    covariance = standard.T @ standard / len(cells)
    _, axes = torch.linalg.eigh(covariance.cpu().double())  # ascending
    return Projection(mean, std, axes.flip(1)[:, :channels].to(cells))


def nearest_centres(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared distance [N] to the nearest of `centres` [K, P] and its index [N], for points [N, P]."""
    lengths = centres.square().sum(1)
    # Without |x|^2, which is the same for all centres. Distances of few points at a time stay in the CPU cache.
    found = [torch.addmm(lengths, part, centres.T, alpha=-2).min(1) for part in pieces(points, POINTS)]
    least, index = torch.cat([one.values for one in found]), torch.cat([one.indices for one in found])
    return (least + points.square().sum(1)).clamp(min=0), index


def kmeans(
    points: Tensor, count: int, *, seed: int, rounds: int = ROUNDS, starts: int = STARTS, centres: Tensor | None = None
) -> tuple[Tensor, float]:
    """Return centres [K, P] of points [N, P] by Lloyd's algorithm, and the sum of squared distances to them.

    Args:
        points: Points [N, P].
        count: Number of centres K, at most N.
        seed: Seed of the initial centres.
        rounds: Largest number of rounds. The algorithm stops early when no assignment changes.
        starts: Number of starts with k-means++ (Arthur & Vassilvitskii 2007). The best one is returned.
        centres: Initial centres to use instead.
    """
    generator = torch.Generator().manual_seed(seed)
    begin = [centres] if centres is not None else [_spread(points, count, generator) for _ in range(starts)]
    found = [_lloyd(points, one, rounds) for one in begin]
    return min(found, key=lambda pair: pair[1])


def _spread(points: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return `count` of the points, each drawn by its squared distance to those before (k-means++)."""
    chosen = [int(torch.randint(len(points), (1,), generator=generator))]
    distance = (points - points[chosen[0]]).square().sum(1)
    for _ in range(count - 1):
        edges = distance.cpu().double().cumsum(0)
        mark = torch.rand(1, generator=generator, dtype=torch.float64) * edges[-1]
        chosen.append(min(int(torch.searchsorted(edges, mark)), len(points) - 1))
        distance = torch.minimum(distance, (points - points[chosen[-1]]).square().sum(1))
    return points[chosen].clone()


def _lloyd(points: Tensor, centres: Tensor, rounds: int) -> tuple[Tensor, float]:
    before: Tensor | None = None
    for _ in range(rounds):
        distance, index = nearest_centres(points, centres)
        if before is not None and torch.equal(index, before):
            break
        before = index
        sums = torch.zeros_like(centres).index_add_(0, index, points)
        sizes = torch.bincount(index, minlength=len(centres))
        empty = (sizes == 0).nonzero().flatten()
        centres = sums / sizes.clamp(min=1)[:, None]
        if len(empty):  # an empty centre moves to the point that is farthest from its centre
            centres[empty] = points[distance.topk(len(empty)).indices]
    return centres, float(nearest_centres(points, centres)[0].cpu().double().sum())


def matching(counts: Tensor) -> Tensor:
    """Return the class of each cluster, [K].

    Args:
        counts: Number of pixels of each cluster in each class, [K, L].
    """
    clusters, classes = counts.shape
    if clusters > classes:
        return counts.argmax(1).cpu()
    counts = counts.cpu().double()
    union = counts.sum(1, keepdim=True) + counts.sum(0, keepdim=True) - counts
    rows, columns = linear_sum_assignment((counts / union.clamp(min=1)).numpy(), maximize=True)
    found = torch.zeros(clusters, dtype=torch.int64)
    found[torch.from_numpy(rows)] = torch.from_numpy(columns)
    return found
