"""Linear segmentation: a 1 x 1 convolution on standardised frozen features.

    min_W  sum_i sum_c y_ic log softmax(W x_i + b)_c / sum_ic y_ic,    y_ic the share of class c in cell i

The optimiser is SGD with momentum 0.9 and cosine decay. Learning rate and weight decay are selected by mIoU on a tenth
of the labelled training images. Logits are resized to the masks bilinearly.

LEOPART (https://arxiv.org/abs/2204.13101, section 4) and NeCo (https://arxiv.org/abs/2408.11054) train the same layer
with SGD at a fixed learning rate for 25 epochs over augmented images, whose features are resized to the mask. Here,
features are computed once without augmentation and standardised, and the loss uses cells with soft labels. Resizing
logits is equivalent to resizing features, since the layer is linear.

Shapes: N cells, C channels, K classes, G candidates.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from dovetail.downstream.dense.cells import Pool
from dovetail.downstream.dense.options import DenseOptions
from dovetail.downstream.probe.knn import pieces
from dovetail.downstream.probe.linear import HELD_OUT_SHARE, Probe, ProbeOptions, train_probes
from dovetail.downstream.segment.metrics import scores_of

CHUNK = 8192


class Candidate(NamedTuple):
    """A learning rate and a weight decay."""

    lr: float
    weight_decay: float


@dataclass(frozen=True)
class LinearHead:
    """A trained linear classifier of cells.

    Attributes:
        probe: The classifier.
        chosen: Selected learning rate and weight decay.
        held_out: mIoU of each candidate on held-out cells, or an empty dict if nothing was held out.
    """

    probe: Probe
    chosen: Candidate
    held_out: dict[Candidate, float]

    @property
    def at_end(self) -> bool:
        """Whether the selected learning rate is the smallest or largest of several with different mIoU."""
        rates = [one.lr for one in self.held_out]
        return (
            len(set(rates)) > 1 and len(set(self.held_out.values())) > 1 and self.chosen.lr in (min(rates), max(rates))
        )

    def class_maps(self, maps: Tensor) -> Tensor:
        """Return logits [B, K, h, w] of maps [B, C, h, w]."""
        batch, _, height, width = maps.shape
        cells = maps.permute(0, 2, 3, 1).flatten(0, 2)
        logits = torch.cat([self.probe.logits(part)[0] for part in pieces(cells, CHUNK)])
        return logits.view(batch, height, width, -1).permute(0, 3, 1, 2)


def fit_linear(pool: Pool, images: Sequence[int], *, classes: int, options: DenseOptions, seed: int) -> LinearHead:
    """Train a classifier on the cells of `images`.

    Args:
        pool: Sampled cells of all training images.
        images: Indices of labelled images in random order. The last tenth (at least one) is held out to select the
            hyperparameters. With a single image, the middle candidate is used.
        classes: Number of classes K.
        options: Candidates, number of steps and batch size.
        seed: Seed of the order of cells.
    """
    candidates = [Candidate(*pair) for pair in itertools.product(sorted(options.lr), sorted(options.weight_decay))]
    held_out: dict[Candidate, float] = {}
    chosen = candidates[(len(candidates) - 1) // 2]
    labelled = [index for index in images if len(pool.features[index])]
    if len(candidates) > 1 and len(labelled) > 1:
        count = max(round(HELD_OUT_SHARE * len(labelled)), 1)
        cells, shares = pool.taken(labelled[:-count], options.max_cells)
        probe = _trained(cells, shares, candidates, classes=classes, options=options, seed=seed)
        unseen = pool.taken(labelled[-count:], options.max_cells)
        held_out = dict(zip(candidates, _cell_miou(probe, *unseen), strict=True))
        chosen = min(candidates, key=lambda one: (-held_out[one], one))
    cells, shares = pool.taken(images, options.max_cells)
    return LinearHead(_trained(cells, shares, [chosen], classes=classes, options=options, seed=seed), chosen, held_out)


def _trained(
    cells: Tensor, shares: Tensor, candidates: Sequence[Candidate], *, classes: int, options: DenseOptions, seed: int
) -> Probe:
    batch = min(options.batch_cells, len(cells))
    epochs = max(round(options.steps * batch / len(cells)), 1)
    how = ProbeOptions(classes=classes, epochs=epochs, batch_size=batch, seed=seed)
    rates, decays = ([float(one[axis]) for one in candidates] for axis in (0, 1))
    return train_probes(cells, shares, rates, how, decays=decays)


def _cell_miou(probe: Probe, cells: Tensor, shares: Tensor) -> list[float]:
    """Return the mIoU of each classifier over cells [N, C], weighted by their class fractions [N, K]."""
    classes = shares.shape[1]
    found: list[float] = []
    for predicted in probe.predictions(cells, chunk=CHUNK):  # [G, N]
        confusion = (shares.T @ F.one_hot(predicted, classes).to(shares.dtype)).cpu().double()
        sums = torch.stack([confusion.diagonal(), confusion.sum(1), confusion.sum(0)])
        found.append(float(scores_of(sums)[0]))
    return found
