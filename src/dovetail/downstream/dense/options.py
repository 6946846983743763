"""How frozen maps are measured."""

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
    """What is measured on labelled images, and how.

    Attributes:
        protocols: "linear", "retrieval", "clusters".
        labels: Training images with labels: up to 1 a share of them, above 1 their number.
        seeds: How often to repeat with other labelled images, batches and starting centres.
        seed: The first of the seeds, and that of the intervals.
        lr: Learning rates of the linear classifier to choose from.
        weight_decay: Weight decays of the linear classifier to choose from.
        steps: Steps of the linear classifier.
        batch_cells: Cells in a step.
        max_cells: Training cells of the linear classifier at most, spread evenly over the images.
        memory: Cells in the memory bank of retrieval at most, spread evenly over the images.
        k: Nearest cells of the bank that a cell's label is made of.
        temperature: Of the softmax over their cosine similarities.
        clusters: Numbers of clusters; 0 stands for the number of classes.
        cluster_cells: Test cells that the centres are fitted to at most, spread evenly over the images.
        cluster_channels: Principal components that are clustered, at most.
        finest_stride: Finer maps are average-pooled to cells of this many pixels.
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
                    raise OptionsError(f"{option} is {value:g}; it must be above {lowest:g}.")
        counts = ("seeds", "steps", "batch_cells", "max_cells", "memory", "k", "cluster_cells", "cluster_channels")
        for option in (*counts, "finest_stride"):
            if getattr(self, option) < 1:
                raise OptionsError(f"{option} is {getattr(self, option)}; it must be at least 1.")
        if not self.lr or not self.weight_decay or min(self.weight_decay) < 0:
            raise OptionsError("lr and weight_decay need at least one value each, and no negative one; give some.")
        if not self.labels:
            raise OptionsError("No number of labelled images was given; give a share such as 1.0, or a number.")
        if "clusters" in self.protocols and (not self.clusters or min(self.clusters) < 0):
            raise OptionsError(f"clusters is {list(self.clusters)}; give numbers of clusters, or 0 for the classes.")


def images_of(labels: float, available: int) -> int:
    """Return how many of the `available` training images `labels` means: a share up to 1, a number above.

    Raises:
        OptionsError: For a number that is not whole or more than there are, and for a share that is not positive.
    """
    if not 0 < labels < math.inf:
        raise OptionsError(f"labels is {labels:g}; give a share above 0 up to 1, or a number of images.")
    if labels <= 1:
        return max(round(labels * available), 1)
    if labels != int(labels):
        raise OptionsError(f"labels is {labels:g}; above 1 it is a number of images, so give a whole number.")
    if labels > available:
        raise OptionsError(f"labels is {labels:g}, but there are {available} training images; give at most that.")
    return int(labels)


def label_counts(labels: Sequence[float], available: int) -> dict[float, int]:
    """Return the number of images for each of `labels`, in their order; those that mean the same number once."""
    counts: dict[float, int] = {}
    for one in labels:
        number = images_of(one, available)
        if number not in counts.values():
            counts[one] = number
    return counts
