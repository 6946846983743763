"""A frozen-feature pixel probe: how well a linear classifier tells each pixel's class from a network's maps.

The network's features stay as they are; BatchNorm's statistics are taken anew from the training images, for every
network alike, so that a randomly initialised one is not handicapped by statistics that it never had. The classifier is
ridge regression onto one-hot labels in closed form, with one fixed strength: nothing is tuned. Every class has the same
total weight, so the score is the mean over classes of the share of pixels found.

Shapes: B images, C channels, K classes, H x W pixels, h x w cells of the grid that is classified, N = B h w.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from dovetail.downstream.labels.labelled import InMemory, LabelledSet
from dovetail.downstream.labels.readers import paired
from dovetail.networks.network import Network
from dovetail.views.plan import IMAGENET_MEAN, IMAGENET_STD
from dovetail.views.view import View

CELL_PX = 8  # side of a classified cell; its label is that of the pixel at its centre
RIDGE = 1e-2  # of the mean square of a standardised feature, which is 1
BATCH = 16


@dataclass(frozen=True)
class ProbeData:
    """Labelled images for the probe: what the classifier is fitted on, and what it is scored on."""

    train: LabelledSet
    test: LabelledSet
    classes: int

    @classmethod
    def open(cls, train: Path, test: Path, *, classes: int) -> ProbeData:
        """Return the sets in two folders, each with `images` and `masks` in it, read once."""
        sets = [InMemory.of(paired(folder / "images", folder / "masks", classes=classes)) for folder in (train, test)]
        return cls(sets[0], sets[1], classes)


def probe(network: Network, data: ProbeData, taps: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Return the balanced accuracy in [0, 1] of a linear classifier on groups of the network's maps.

    Args:
        network: Its features stay; BatchNorm's running statistics are taken anew.
        data: Images of one size.
        taps: For each name of a group, the taps that are resized to the grid and concatenated.
    """
    wanted = sorted({tap for group in taps.values() for tap in group})
    renew_statistics(network, data.train, wanted)
    train, test = (maps_of(network, part, wanted) for part in (data.train, data.test))
    labels, truth = labels_of(data.train), labels_of(data.test)
    scores = {}
    for name, group in taps.items():
        rows, held_out = (torch.cat([part[tap] for tap in group], dim=1) for part in (train, test))
        predicted = fit_predict(rows, labels, held_out, classes=data.classes)
        scores[name] = balanced_accuracy(predicted, truth, classes=data.classes)
    return scores


def probe_groups(network: Network) -> dict[str, list[str]]:
    """Return the maps that are probed together: all of the encoder's, or a ViT's patches, and all of the decoder's."""
    groups: dict[str, list[str]] = {}
    for part in ("encoder", "decoder"):
        kind = "tokens" if part == "encoder" and "patches" in network.taps else "map"
        names = [
            name
            for name, tap in network.taps.items()
            if tap.part == part and tap.kind == kind and name in ("patches", *_MAPS)
        ]
        if names:
            groups[part] = names
    return groups


_MAPS = tuple(f"{part}{level}" for part in "cp" for level in range(2, 6))


@torch.no_grad()
def renew_statistics(network: Network, data: LabelledSet, taps: Sequence[str]) -> None:
    """Replace BatchNorm's running statistics by their mean over `data`."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # a plain mean over batches
    network.train()
    if norms:
        for view in views_of(data):
            network(view, taps)
    network.eval()
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum


@torch.no_grad()
def maps_of(network: Network, data: LabelledSet, taps: Sequence[str]) -> dict[str, Tensor]:
    """Return each tap's features of all cells of all images, [N, C]."""
    rows: dict[str, list[Tensor]] = {tap: [] for tap in taps}
    for view in views_of(data):
        side = view.pixels.shape[-1] // CELL_PX
        for tap, value in network(view, taps).items():
            square = as_map(value).float()
            resized = F.interpolate(square, size=(side, side), mode="bilinear", align_corners=False)
            rows[tap].append(resized.permute(0, 2, 3, 1).flatten(0, 2))
    return {tap: torch.cat(values) for tap, values in rows.items()}


def as_map(value: Tensor) -> Tensor:
    """Return tokens [B, N, C] of a square image as [B, C, h, w]; maps pass."""
    if value.dim() == 4:
        return value
    side = round(value.shape[1] ** 0.5)
    return value.transpose(1, 2).reshape(value.shape[0], -1, side, side)


def labels_of(data: LabelledSet) -> Tensor:
    """Return the labels of all cells of all images, [N]."""
    middle = slice(CELL_PX // 2, None, CELL_PX)
    return torch.cat([data[index].mask[middle, middle].flatten() for index in range(len(data))])


def views_of(data: LabelledSet) -> list[View]:
    """Return the whole images as views, `BATCH` at a time."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    views = []
    for start in range(0, len(data), BATCH):
        items = [data[index] for index in range(start, min(start + BATCH, len(data)))]
        pixels = torch.stack([(item.image.float() / 255 - mean) / std for item in items])
        views.append(
            View(
                pixels=pixels,
                box=torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(len(items), 4),
                flipped=torch.zeros(len(items), dtype=torch.bool),
                source_px=torch.full((len(items), 2), float(pixels.shape[-1])),
            )
        )
    return views


def fit_predict(rows: Tensor, labels: Tensor, held_out: Tensor, *, classes: int) -> Tensor:
    """Return the predicted class of each row of `held_out` [M, C], by ridge regression on `rows` [N, C]."""
    mean, std = rows.mean(0), rows.std(0).clamp(min=1e-6)
    known, asked = (F.pad((part - mean) / std, (0, 1), value=1.0) for part in (rows, held_out))
    weight = 1.0 / torch.bincount(labels, minlength=classes).clamp(min=1)[labels]  # every class counts alike
    weighted = known * (weight / weight.sum()).unsqueeze(1)
    strength = torch.full((known.shape[1],), RIDGE)
    strength[-1] = 0.0
    gram = weighted.T @ known + torch.diag(strength)
    target = F.one_hot(labels, classes).float()
    solution = torch.linalg.solve(gram.double(), (weighted.T @ target).double())
    predicted: Tensor = (asked @ solution.float()).argmax(1)
    return predicted


def balanced_accuracy(predicted: Tensor, truth: Tensor, *, classes: int) -> float:
    """Return the mean over the classes that occur of the share of their cells that is predicted right."""
    found = torch.bincount(truth[predicted == truth], minlength=classes)
    there = torch.bincount(truth, minlength=classes)
    return float((found[there > 0] / there[there > 0]).mean())
