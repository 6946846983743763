"""Evaluates the kNN accuracy of a network during training."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from dovetail.downstream.labels.class_sets import ClassSet
from dovetail.downstream.labels.images import open_splits
from dovetail.downstream.machine import Machine
from dovetail.downstream.probe.features import Features, of_central_crops
from dovetail.downstream.probe.knn import knn_predictions
from dovetail.networks.network import Network
from dovetail.networks.rest import at_rest
from dovetail.sizes import Size

NEIGHBOURS = 20  # best k in most of DINO's experiments


class OnlineKnn:
    """Computes the kNN top-1 accuracy of a network, as `dovetail evaluate knn --k 20`.

    Args:
        data: Folder with train/CLASS/ and val/CLASS/ images as in ImageNet, or a saved Hugging Face dataset.
        size: Side of the centre crops in pixels.
        mean: Mean of each channel in [0, 1].
        std: Standard deviation of each channel.
        machine: Device and precision of the run.

    Attributes:
        note: Note on the split, may be empty.

    Raises:
        DovetailError: The folder has another layout.
    """

    def __init__(
        self, data: str | Path, *, size: Size, mean: tuple[float, ...], std: tuple[float, ...], machine: Machine
    ) -> None:
        self.train, self.held_out, self.note = open_splits(data)
        self.size, self.mean, self.std = size, mean, std
        self.machine = machine

    def __call__(self, network: Network) -> float:
        """Return the accuracy on the validation images, in [0, 1]. The state of the network is restored.

        Raises:
            DovetailError: An image cannot be read.
        """
        with at_rest(network):
            bank, queries = (self._features(network, data) for data in (self.train, self.held_out))
        labels, truth = (torch.tensor(data.labels) for data in (self.train, self.held_out))
        k = min(NEIGHBOURS, len(bank))
        found = knn_predictions(queries, bank, labels, classes=len(self.train.names), k=[k])[k]
        return float((found == truth).double().mean())

    def _features(self, network: Network, data: ClassSet) -> Tensor:
        model = Features(network)
        return of_central_crops(model, data, size=self.size, mean=self.mean, std=self.std, machine=self.machine)
