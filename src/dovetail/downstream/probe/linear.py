"""Linear probe: logistic regression on frozen features. All learning rates of a sweep are trained in parallel.

    min_W  mean_i CE(W x_i + b, y_i) + (weight_decay / 2) |W|^2,    x standardised by the training features

The optimiser is SGD with momentum 0.9 and cosine decay, as in the protocols of MoCo and DINO. Features are computed
once from centre crops. Augmenting images in every epoch is not supported, because it would rerun the encoder.

Shapes: N images, D channels, K classes, R learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dovetail.downstream.labels.subsets import balanced_order
from dovetail.downstream.probe.knn import pieces
from dovetail.errors import DataError, OptionsError

HELD_OUT_SHARE = 0.1


@dataclass(frozen=True)
class ProbeOptions:
    """Options for training linear probes.

    Attributes:
        classes: Number of classes K.
        epochs: Epochs over the features.
        batch_size: Features per step.
        rates: Learning rates of the sweep for this batch size.
        weight_decay: Weight decay of W.
        momentum: Momentum of SGD.
        seed: Seed of the order, and of the held-out images for selecting the learning rate.
    """

    classes: int
    epochs: int = 100
    batch_size: int = 1024
    rates: tuple[float, ...] = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
    weight_decay: float = 0.0
    momentum: float = 0.9
    seed: int = 0


@dataclass(frozen=True)
class Probe:
    """R linear classifiers: `weight` [R, D, K], `bias` [R, 1, K], and `mean` and `std` [D] to standardise features."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Return [R, N, K] for features [N, D]."""
        return torch.matmul((features.float() - self.mean) / self.std, self.weight) + self.bias

    def predictions(self, features: Tensor, *, chunk: int = 8192) -> Tensor:
        """Return the classes [R, N] of features [N, D]."""
        return torch.cat([self.logits(part).argmax(2) for part in pieces(features, chunk)], dim=1)


def train_probes(
    features: Tensor,
    labels: Tensor,
    rates: Sequence[float],
    options: ProbeOptions,
    *,
    decays: Sequence[float] | None = None,
    on_epoch: Callable[[], None] | None = None,
) -> Probe:
    """Train a classifier for each of `rates`.

    Args:
        features: Features [N, D].
        labels: Classes [N] int64, or class fractions [N, K] float, whose sums are the weights of the rows.
        rates: R learning rates.
        options: Options for training.
        decays: Weight decay for each learning rate. Overrides that of `options`.
        on_epoch: Called after each epoch.

    Raises:
        OptionsError: There are no learning rates, or some are not positive.
    """
    if not rates or min(rates) <= 0:
        raise OptionsError(f"lr expects positive learning rates, got {list(rates)}.")
    mean, std = features.float().mean(0), features.float().std(0, correction=0).clamp(min=1e-6)
    device, width = features.device, features.shape[1]
    weight = torch.zeros(len(rates), width, options.classes, device=device)
    bias = torch.zeros(len(rates), 1, options.classes, device=device)
    moving = [torch.zeros_like(weight), torch.zeros_like(bias)]
    peak = torch.tensor(list(rates), device=device).view(-1, 1, 1)
    decay = options.weight_decay if decays is None else torch.tensor(list(decays), device=device).view(-1, 1, 1)
    generator = torch.Generator().manual_seed(options.seed)
    batches = math.ceil(len(features) / options.batch_size)
    for epoch in range(options.epochs):
        order = torch.randperm(len(features), generator=generator).to(device)
        for step, chosen in enumerate(pieces(order, options.batch_size)):
            share = (1 + math.cos(math.pi * (epoch * batches + step) / (options.epochs * batches))) / 2
            inputs = features[chosen].float().sub_(mean).div_(std)  # a copy, changed in place
            gradients = probe_gradients(inputs, labels[chosen], weight, bias, decay)
            for value, moved, gradient in zip((weight, bias), moving, gradients, strict=True):
                moved.mul_(options.momentum).add_(gradient)
                value.sub_(peak * share * moved)
        if on_epoch is not None:
            on_epoch()
    return Probe(weight, bias, mean, std)


def probe_gradients(
    inputs: Tensor, labels: Tensor, weight: Tensor, bias: Tensor, weight_decay: float | Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the loss with respect to W [R, D, K] and b [R, 1, K].

    Labels are classes [B] or class fractions [B, K]. `weight_decay` is a number or [R, 1, 1].
    """
    rates, width, classes = weight.shape
    truth = F.one_hot(labels, classes).to(weight.dtype) if labels.dim() == 1 else labels
    counts = truth.sum(1)  # [B]
    side_by_side = weight.transpose(0, 1).reshape(width, rates * classes)  # a single product for all rates is faster
    logits = (inputs @ side_by_side).view(-1, rates, classes) + bias.view(rates, classes)  # [B, R, K]
    residual = logits.softmax(2).mul_(counts[:, None, None]).sub_(truth[:, None]).div_(counts.sum())
    gradient = (inputs.T @ residual.flatten(1)).view(width, rates, classes).transpose(0, 1)
    return gradient + weight_decay * weight, residual.sum(0)[:, None]


def choose_rate(
    features: Tensor, labels: Tensor, options: ProbeOptions, *, on_epoch: Callable[[], None] | None = None
) -> tuple[float, dict[float, float]]:
    """Select the learning rate on a held-out, class-balanced tenth of the training set. Also returns all accuracies.

    The test set is not used. If several learning rates are equally good, the smallest one is selected.
    """
    order = balanced_order([[int(label)] for label in labels.tolist()], options.seed)
    count = min(max(round(HELD_OUT_SHARE * len(order)), 1), len(order) - 1)
    if count < 1:
        raise DataError("Selecting a learning rate needs at least two training images; add images.")
    held, kept = (torch.tensor(part, device=features.device) for part in (order[-count:], order[:-count]))
    probe = train_probes(features[kept], labels[kept], options.rates, options, on_epoch=on_epoch)
    right = (probe.predictions(features[held]) == labels[held]).float().mean(1)
    accuracy = {rate: float(share) for rate, share in zip(options.rates, right, strict=True)}
    return min(options.rates, key=lambda rate: (-accuracy[rate], rate)), accuracy
