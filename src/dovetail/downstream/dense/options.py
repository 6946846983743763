"""Options for the evaluation of frozen feature maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from dovetail.errors import OptionsError, unknown_name

ImageProtocol = Literal["linear", "retrieval", "clusters"]
Protocol = Literal["linear", "retrieval", "clusters", "propagation"]


@dataclass(frozen=True)
class DenseOptions:
    """Options for the evaluation on labelled images.

    Attributes:
        protocols: "linear", "retrieval", "clusters".
        labels: Labelled training images: fractions up to 1, or numbers above 1.
        seeds: Number of repetitions with other labelled images, batches and initial centres.
        seed: First seed, and seed of the confidence intervals.
        lr: Candidate learning rates of the linear classifier.
        weight_decay: Candidate weight decays of the linear classifier.
        steps: Optimiser steps of the linear classifier.
        batch_cells: Number of cells in a step.
        max_cells: Largest number of training cells of the linear classifier, spread evenly over the images.
        memory: Largest number of cells in the memory bank of retrieval, spread evenly over the images.
        k: Number of nearest cells in the bank.
        temperature: Temperature of the softmax over their cosine similarities.
        clusters: Numbers of clusters. 0 is the number of classes.
        cluster_cells: Largest number of test cells that the centres are fitted to, spread evenly over the images.
        cluster_channels: Largest number of principal components to cluster.
        finest_stride: Smallest stride in pixels. Finer maps are average-pooled to it.
    """

    protocols: tuple[ImageProtocol, ...] = ("linear", "retrieval", "clusters")
    labels: tuple[float, ...] = (1.0,)
    seeds: int = 1
    seed: int = 0
    lr: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    weight_decay: tuple[float, ...] = (1e-4, 1e-2)
    steps: int = 400
    batch_cells: int = 2048
    max_cells: int = 200_000
    memory: int = 20_000
    k: int = 30
    temperature: float = 0.02
    clusters: tuple[int, ...] = (0, 500)
    cluster_cells: int = 30_000
    cluster_channels: int = 50
    finest_stride: int = 4

    def __post_init__(self) -> None:
        known = get_args(ImageProtocol)
        for name in self.protocols:
            if name not in known:
                raise unknown_name("protocol", name, known)
        for option, lowest in (("lr", 0.0), ("temperature", 0.0)):
            values = getattr(self, option)
            for value in values if isinstance(values, tuple) else (values,):
                if not lowest < value < math.inf:
                    raise OptionsError(f"{option} expects a value above {lowest:g}, got {value:g}.")
        counts = ("seeds", "steps", "batch_cells", "max_cells", "memory", "k", "cluster_cells", "cluster_channels")
        for option in (*counts, "finest_stride"):
            if getattr(self, option) < 1:
                raise OptionsError(f"{option} is {getattr(self, option)}; it must be at least 1.")
        if not self.lr or not self.weight_decay or min(self.weight_decay) < 0:
            raise OptionsError("lr and weight_decay expect at least one value each, and no negative values.")
        if not self.labels:
            raise OptionsError("labels is empty; specify a fraction such as 1.0, or a number of images.")
        if "clusters" in self.protocols and (not self.clusters or min(self.clusters) < 0):
            raise OptionsError(
                f"clusters expects numbers of clusters, or 0 for the number of classes; got {list(self.clusters)}."
            )


def images_of(labels: float, available: int) -> int:
    """Convert `labels` (a fraction up to 1, or a number above 1) to a number of the `available` training images.

    Raises:
        OptionsError: A number is not an integer or exceeds the available images, or a fraction is not positive.
    """
    if not 0 < labels < math.inf:
        raise OptionsError(f"labels expects a fraction above 0 up to 1, or a number of images; got {labels:g}.")
    if labels <= 1:
        return max(round(labels * available), 1)
    if labels != int(labels):
        raise OptionsError(f"labels above 1 is a number of images, which must be an integer; got {labels:g}.")
    if labels > available:
        raise OptionsError(f"labels is {labels:g}, but there are only {available} training images; use fewer.")
    return int(labels)


def label_counts(labels: Sequence[float], available: int) -> dict[float, int]:
    """Return the number of images for each of `labels`, in order and without duplicates."""
    counts: dict[float, int] = {}
    for one in labels:
        number = images_of(one, available)
        if number not in counts.values():
            counts[one] = number
    return counts
