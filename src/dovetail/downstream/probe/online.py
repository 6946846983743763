"""kNN of a network in training: how well its encoder, as it stands, tells labelled images apart."""

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

NEIGHBOURS = 20  # DINO's best most often


class OnlineKnn:
    """A function from a network to its kNN top-1, as `dovetail evaluate knn --k 20` measures it.

    Args:
        data: Folder with train/CLASS/ and val/CLASS/ images, as ImageNet's, or a saved Hugging Face dataset.
        size: Side of the central crops in pixels.
        mean: Of each channel in [0, 1].
        std: Deviation of each channel.
        machine: Where the run computes.

    Attributes:
        note: What to know about the split; may be empty.

    Raises:
        DovetailError: For a folder laid out otherwise.
    """

    def __init__(
        self, data: str | Path, *, size: int, mean: tuple[float, ...], std: tuple[float, ...], machine: Machine
    ) -> None:
        self.train, self.held_out, self.note = open_splits(data)
        self.size, self.mean, self.std = size, mean, std
        self.machine = machine

    def __call__(self, network: Network) -> float:
        """Return the share of held-out images that are classified rightly, in [0, 1]; the network is left as it was.

        Raises:
            DovetailError: For images that cannot be read.
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
