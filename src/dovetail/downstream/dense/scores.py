"""Computes the mIoU of frozen feature maps for all protocols. One pass samples labelled cells, another one scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dovetail.downstream.dense.bootstrap import miou_score
from dovetail.downstream.dense.cells import Pool, as_cells, cell_shares, quotas, rare_first_order, uniform_order
from dovetail.downstream.dense.clusters import Clusters, fit_projection, kmeans, matching
from dovetail.downstream.dense.linear import fit_linear
from dovetail.downstream.dense.maps import MapSource, Replayed
from dovetail.downstream.dense.options import DenseOptions, ImageProtocol, label_counts
from dovetail.downstream.dense.retrieval import build_bank
from dovetail.downstream.labels.subsets import balanced_order
from dovetail.downstream.segment.metrics import ConfusionMatrix
from dovetail.downstream.table.results import Score
from dovetail.errors import DataError, RunError

ORDERS = {"linear": uniform_order, "retrieval": rare_first_order}
OnImages = Callable[[int], None]


@dataclass(frozen=True)
class DenseScore:
    """The score of a tap with a protocol and a number of labelled images.

    Attributes:
        at: Tap name.
        protocol: "linear", "retrieval" or "clusters".
        labels: Requested fraction or number of labelled images, or None for clusters, which need no labels.
        images: Number of labelled training images, or None for clusters.
        clusters: Number of clusters, or None for other protocols.
        miou: Mean over seeds, with the 95 % bootstrap interval over test images.
        counts: Pixel counts [N, 3, K] int64 of each seed: correct, true and predicted pixels by test image and class.
        chosen: For the linear head, per seed: the learning rate and weight decay selected on the held-out tenth, and
            whether the learning rate is at the end of the sweep ("at_end").
    """

    at: str
    protocol: ImageProtocol
    labels: float | None
    images: int | None
    clusters: int | None
    miou: Score
    counts: tuple[Tensor, ...]
    chosen: tuple[Mapping[str, float], ...] = ()

    @property
    def class_iou(self) -> list[float]:
        """IoU of each class over all test images, averaged over seeds. NaN for classes that do not occur."""
        sums = torch.stack([one.double().sum(0) for one in self.counts])  # [S, 3, K]
        iou: list[float] = (sums[:, 0] / (sums[:, 1] + sums[:, 2] - sums[:, 0])).mean(0).tolist()
        return iou

    @property
    def commonest_miou(self) -> float:
        """The mIoU of predicting the commonest class of the test images everywhere: a score without any features."""
        true = self.counts[0][:, 1].sum(0)
        return float(true.max() / true.sum() / (true > 0).sum())

    def setting(self) -> dict[str, Any]:
        """Return the settings of this score for a row of the table."""
        every = {"at": self.at, "protocol": self.protocol, "labels": self.images, "clusters": self.clusters}
        return {name: value for name, value in every.items() if value is not None}


class Head(Protocol):
    """Computes class scores for every cell: [B, C, h, w] -> [B, K, h, w]. The largest one is the prediction."""

    def class_maps(self, maps: Tensor) -> Tensor: ...


@dataclass
class Trial:
    """Accumulates the predictions of one head and seed over the test images."""

    at: str
    protocol: ImageProtocol
    labels: float
    images: int
    head: Head
    chosen: Mapping[str, float]
    matrix: ConfusionMatrix

    def add(self, maps: Tensor, masks: Tensor) -> None:
        """Count the predictions for a batch of images at the size of their masks."""
        for values, mask in zip(self.head.class_maps(maps), masks, strict=True):
            resized = F.interpolate(values[None], size=tuple(mask.shape), mode="bilinear", align_corners=False)
            self.matrix.add(resized[0].argmax(0), mask)


@dataclass
class ClusterTrial:
    """Accumulates the clusters of one seed over the test images. Pairs are (cluster, class), K x L in total."""

    at: str
    clusters: Clusters
    classes: int
    ignore_index: int
    pairs: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # pairs in each image, and their pixel counts

    @property
    def count(self) -> int:
        """K."""
        return len(self.clusters.centres)

    def add(self, maps: Tensor, masks: Tensor) -> None:
        """Count the pixels of every cluster and class in a batch of images."""
        labels = self.clusters.label_maps(maps)[:, None].float()
        found = F.interpolate(labels, size=tuple(masks.shape[1:]), mode="nearest-exact")[:, 0].long()
        for cluster, mask in zip(found, masks, strict=True):
            kept = mask != self.ignore_index
            pixels = torch.bincount(cluster[kept] * self.classes + mask[kept], minlength=self.count * self.classes)
            there = pixels.nonzero().flatten()
            self.pairs.append((there.cpu(), pixels[there].cpu()))

    def counts(self) -> Tensor:
        """Return the correct, true and predicted pixels of every image after the matching, [N, 3, L]."""
        total = torch.zeros(self.count * self.classes, dtype=torch.int64)
        for there, pixels in self.pairs:
            total[there] += pixels
        matched = matching(total.view(self.count, self.classes))
        rows: list[Tensor] = []
        for there, pixels in self.pairs:
            predicted, truth = matched[there // self.classes], there % self.classes
            confusion = torch.zeros(self.classes * self.classes, dtype=torch.int64)
            confusion.index_add_(0, truth * self.classes + predicted, pixels)
            table = confusion.view(self.classes, self.classes)
            rows.append(torch.stack([table.diagonal(), table.sum(1), table.sum(0)]))
        return torch.stack(rows)


@torch.no_grad()
def dense_scores(
    train: MapSource,
    test: MapSource,
    *,
    classes: int,
    options: DenseOptions | None = None,
    on_images: OnImages = lambda count: None,
) -> list[DenseScore]:
    """Return the mIoU of every map with every protocol.

    Args:
        train: Training images. `options.labels` determines how many labels are used.
        test: Test images.
        classes: Number of classes K. Labels are 0 .. K - 1 or the ignored label.
        options: Options for the evaluation.
        on_images: Called after each batch with the number of images.

    Raises:
        DovetailError: A label is invalid, or there are no labelled pixels.
    """
    options = options or DenseOptions()
    if "clusters" in options.protocols:  # iterates over the test images twice
        test = Replayed(test)
    trials = _trained(train, test.ignore_index, classes, options, on_images)
    clusterings = _clustered(test, classes, options, on_images) if "clusters" in options.protocols else []
    for batch in test.batches(finest_stride=options.finest_stride):
        every: list[Trial | ClusterTrial] = [*trials, *clusterings]
        for trial in every:
            trial.add(batch.maps[trial.at], batch.masks)
        on_images(len(batch.masks))
    return [*_scores_of_heads(trials, options), *_scores_of_clusters(clusterings, options)]


def _trained(
    train: MapSource, ignore_index: int, classes: int, options: DenseOptions, on_images: OnImages
) -> list[Trial]:
    """Return the trained heads of all maps, protocols, numbers of labels and seeds."""
    protocols = [name for name in options.protocols if name in ORDERS]
    if not protocols:
        return []
    counts = label_counts(options.labels, len(train))
    occurring = [train.classes_in(index) for index in range(len(train))]
    orders = {seed: balanced_order(occurring, seed) for seed in _seeds(options)}
    subsets = [order[:count] for order in orders.values() for count in counts.values()]
    pools = _sampled(train, subsets, protocols, classes, options, on_images)
    trials: list[Trial] = []
    for (at, protocol), pool in pools.items():
        for labels, count in counts.items():
            for seed, order in orders.items():
                head, chosen = _head(protocol, pool, order[:count], classes=classes, options=options, seed=seed)
                matrix = ConfusionMatrix(classes, ignore_index=ignore_index)
                trials.append(Trial(at, protocol, labels, count, head, chosen, matrix))
    return trials


def _head(
    protocol: ImageProtocol, pool: Pool, images: Sequence[int], *, classes: int, options: DenseOptions, seed: int
) -> tuple[Head, Mapping[str, float]]:
    if protocol == "retrieval":
        return build_bank(pool, images, options=options), {}
    head = fit_linear(pool, images, classes=classes, options=options, seed=seed)
    if not bool(head.probe.weight.isfinite().all()):
        raise RunError(
            f"The weights of the linear head are NaN at the learning rate {head.chosen.lr:g}; use a lower --lr."
        )
    return head, head.chosen._asdict() | {"at_end": head.at_end}


def _sampled(
    train: MapSource,
    subsets: Sequence[Sequence[int]],
    protocols: Sequence[ImageProtocol],
    classes: int,
    options: DenseOptions,
    on_images: OnImages,
) -> dict[tuple[str, ImageProtocol], Pool]:
    """Sample cells for every map and protocol in one pass over the training images."""
    most = {"linear": options.max_cells, "retrieval": options.memory}
    quota = {name: quotas(subsets, most[name], len(train)) for name in protocols}
    pools: dict[tuple[str, ImageProtocol], Pool] = {}
    done = 0
    for batch in train.batches(finest_stride=options.finest_stride):
        for at, maps in batch.maps.items():
            for offset, (one, mask) in enumerate(zip(maps, batch.masks, strict=True)):
                grid = (one.shape[1], one.shape[2])
                shares = cell_shares(mask, grid, classes=classes, ignore_index=train.ignore_index)
                for name in protocols:
                    pool = pools.setdefault((at, name), Pool(quota[name]))
                    order = ORDERS[name](shares, np.random.default_rng((options.seed, 7, done + offset)))
                    pool.add(as_cells(one), shares, order)
        done += len(batch.masks)
        on_images(len(batch.masks))
    return pools


def _clustered(test: MapSource, classes: int, options: DenseOptions, on_images: OnImages) -> list[ClusterTrial]:
    """Return the clusterings of all maps and seeds. Numbers of clusters above the number of cells are skipped."""
    each = max(options.cluster_cells // len(test), 1)
    samples: dict[str, list[Tensor]] = {}
    done = 0
    for batch in test.batches(finest_stride=options.finest_stride):
        for at, maps in batch.maps.items():
            for offset, one in enumerate(maps):
                rng = np.random.default_rng((options.seed, 8, done + offset))
                samples.setdefault(at, []).append(_some(as_cells(one), each, rng))
        done += len(batch.masks)
        on_images(len(batch.masks))
    trials: list[ClusterTrial] = []
    for at, parts in samples.items():
        cells = torch.cat(parts)
        projection = fit_projection(cells, options.cluster_channels)
        points = projection(cells)
        for count in dict.fromkeys(one or classes for one in options.clusters):
            if count > len(points):
                continue
            for seed in _seeds(options):
                centres, _ = kmeans(points, count, seed=seed)
                trials.append(ClusterTrial(at, Clusters(projection, centres), classes, test.ignore_index))
    return trials


def _some(cells: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """Return up to `count` random cells of [n, C]."""
    chosen = torch.from_numpy(rng.permutation(len(cells))[:count])
    return cells[chosen.to(cells.device)].clone()


def _seeds(options: DenseOptions) -> range:
    return range(options.seed, options.seed + options.seeds)


def _scores_of_heads(trials: Sequence[Trial], options: DenseOptions) -> Iterator[DenseScore]:
    groups: dict[tuple[str, ImageProtocol, float], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.at, trial.protocol, trial.labels), []).append(trial)
    for (at, protocol, labels), same in groups.items():
        counts = tuple(torch.stack(trial.matrix.added) for trial in same)
        _check_counted(counts)
        chosen = tuple(trial.chosen for trial in same if trial.chosen)
        score = miou_score(counts, seed=options.seed)
        yield DenseScore(at, protocol, labels, same[0].images, None, score, counts, chosen)


def _scores_of_clusters(trials: Sequence[ClusterTrial], options: DenseOptions) -> Iterator[DenseScore]:
    groups: dict[tuple[str, int], list[ClusterTrial]] = {}
    for trial in trials:
        groups.setdefault((trial.at, trial.count), []).append(trial)
    for (at, count), same in groups.items():
        counts = tuple(trial.counts() for trial in same)
        _check_counted(counts)
        yield DenseScore(at, "clusters", None, None, count, miou_score(counts, seed=options.seed), counts)


def _check_counted(counts: Sequence[Tensor]) -> None:
    if not int(counts[0].sum()):
        raise DataError("The test images have no labelled pixels; check the masks and the ignore index.")
