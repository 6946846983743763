"""Full fine-tuning for classification: layer decay, mixup, label smoothing.

* Layer decay (Clark et al., 2020; BEiT, https://arxiv.org/abs/2106.08254): the rate of layer l of L is
  lr * decay^(L - l), the new classifier's being lr. Layers are a ViT's blocks, a CNN's stages.
* mixup (Zhang et al., 2018, https://arxiv.org/abs/1710.09412): x = m x_i + (1 - m) x_j, y likewise, m ~ Beta(a, a).
* Label smoothing e: the truth gets 1 - e + e / K, every other class e / K.

AdamW, linear warm-up, cosine decay. What step k sees is a pure function of (seed, k).

Shapes: B images, C channels, S pixels a side, K classes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dovetail.errors import DovetailError
from dovetail.transfer.class_sets import ClassSet
from dovetail.transfer.features import Features, batched
from dovetail.transfer.images import central, random_crop
from dovetail.transfer.machine import Machine, ahead, normalised

_LAYER = re.compile(r"(?:^|\.)(?:blocks|layers?|stages|features)[._]?(\d+)(?:\.|_|$)")


@dataclass(frozen=True)
class ClassifyOptions:
    """How a classifier is fine-tuned.

    Attributes:
        classes: K.
        steps: Optimiser steps.
        size: Side of the crops in pixels.
        mean: Of each channel in [0, 1].
        std: Deviation of each channel.
        batch_size: Images in a step.
        lr: Peak learning rate of the classifier.
        layer_decay: Factor from a layer's rate to that of the layer before it; 1 gives all one rate.
        weight_decay: Of tensors with more than one dimension.
        warmup_steps: Steps of linear warm-up.
        mixup: a of the Beta distribution; 0 turns mixup off.
        label_smoothing: e.
        smallest_area: Smallest share of an image that a random crop takes.
        seed: Of order, crops and mixing.
    """

    classes: int
    steps: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    batch_size: int = 64
    lr: float = 1e-3
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    warmup_steps: int = 0
    mixup: float = 0.0
    label_smoothing: float = 0.1
    smallest_area: float = 0.08
    seed: int = 0

    def rate_share(self, step: int) -> float:
        """Return the share of its peak that a rate has at `step`."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        done = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return (1 + math.cos(math.pi * done)) / 2


class Classifier(nn.Module):
    """Features and a linear layer: [B, C, S, S] -> logits [B, K]."""

    def __init__(self, features: Features, classes: int) -> None:
        super().__init__()
        self.features = features
        self.head = nn.Linear(features.width, classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits of normalised pixels."""
        logits: Tensor = self.head(self.features(pixels))
        return logits


def layer_of(name: str) -> int | None:
    """Return the number of the block or stage that a parameter is in; None for the stem and for what comes after."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def layer_depths(names: list[str]) -> dict[str, int]:
    """Return the layer of each parameter: 0 for the stem, then blocks or stages, then norms after them, last the head.

    Parameters without a number belong to the stem where they come before the first that has one.
    """
    numbers = {name: layer_of(name) for name in names}
    known = sorted({number for number in numbers.values() if number is not None})
    rank = {number: index + 1 for index, number in enumerate(known)}
    first = next((index for index, name in enumerate(names) if numbers[name] is not None), len(names))
    depths: dict[str, int] = {}
    for index, name in enumerate(names):
        number = numbers[name]
        if name.startswith("head."):
            depths[name] = len(known) + 1
        elif number is not None:
            depths[name] = rank[number]
        else:
            depths[name] = 0 if index < first else len(known)
    return depths


def build_optimiser(model: nn.Module, options: ClassifyOptions) -> torch.optim.Optimizer:
    """Return AdamW with one group for each layer and weight decay."""
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    depths = layer_depths([name for name, _ in named])
    top = max(depths.values())
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, value in named:
        groups.setdefault((depths[name], value.dim() > 1), []).append(value)
    return torch.optim.AdamW(
        [
            {
                "params": values,
                "lr": options.lr * options.layer_decay ** (top - depth),
                "peak_lr": options.lr * options.layer_decay ** (top - depth),
                "weight_decay": options.weight_decay if matrix else 0.0,
            }
            for (depth, matrix), values in groups.items()
        ]
    )


def training_batch(data: ClassSet, options: ClassifyOptions, step: int) -> tuple[Tensor, Tensor]:
    """Return crops [B, C, S, S] uint8 and labels [B] of a step, a pure function of (seed, step)."""
    images, labels = [], []
    for place in range(step * options.batch_size, (step + 1) * options.batch_size):
        turn, offset = divmod(place, len(data))
        order = np.random.default_rng((options.seed, 0, turn)).permutation(len(data))
        rng, index = np.random.default_rng((options.seed, 1, place)), int(order[offset])
        crop = random_crop(
            data,
            index,
            rng,
            channels=len(options.mean),
            size=options.size,
            smallest_area=options.smallest_area,
        )
        images.append(crop)
        labels.append(data.labels[index])
    return torch.stack(images), torch.tensor(labels)


def soft_labels(labels: Tensor, options: ClassifyOptions) -> Tensor:
    """Return [B, K]: smoothed truth."""
    share = options.label_smoothing / options.classes
    return F.one_hot(labels, options.classes).float() * (1 - options.label_smoothing) + share


def mixed(pixels: Tensor, targets: Tensor, options: ClassifyOptions, step: int) -> tuple[Tensor, Tensor]:
    """Return images and targets mixed with those of the batch in another order; one share for the batch."""
    if options.mixup <= 0:
        return pixels, targets
    rng = np.random.default_rng((options.seed, 4, step))
    share = float(rng.beta(options.mixup, options.mixup))
    order = torch.from_numpy(rng.permutation(len(pixels))).to(pixels.device)
    return share * pixels + (1 - share) * pixels[order], share * targets + (1 - share) * targets[order]


def finetune_classification(
    model: Classifier,
    data: ClassSet,
    options: ClassifyOptions,
    *,
    machine: Machine,
    on_step: Callable[[int, float], None] | None = None,
) -> list[float]:
    """Fine-tune `model` in place and return the loss of every step.

    Raises:
        DovetailError: For an empty set, and where the loss stops being a number.
    """
    if len(data) == 0:
        raise DovetailError("The training set is empty; give at least one image.")
    machine.place(model).train()
    optimiser = build_optimiser(model, options)
    batches = ahead(lambda step: training_batch(data, options, step), range(options.steps), threads=machine.threads)
    losses: list[float] = []
    for step, (images, labels) in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = group["peak_lr"] * options.rate_share(step)
        pixels = normalised(images.to(machine.device), options.mean, options.std)
        pixels, targets = mixed(pixels, soft_labels(labels.to(machine.device), options), options, step)
        with machine.autocast():
            logits = model(pixels)
        loss = F.cross_entropy(logits.float(), targets)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise DovetailError(f"The loss is {losses[-1]} at step {step + 1}; lower --lr.")
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
        if on_step is not None:
            on_step(step, losses[-1])
    return losses


@torch.no_grad()
def class_logits(
    model: nn.Module,
    data: ClassSet,
    *,
    size: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    machine: Machine,
    batch_size: int = 64,
    on_batch: Callable[[int], None] | None = None,
) -> Tensor:
    """Return the logits [N, K] of the central crops of all images, on the CPU."""
    machine.place(model).eval()
    crops = ahead(
        lambda index: central(data, index, channels=len(mean), size=size), range(len(data)), threads=machine.threads
    )
    found = []
    for batch in batched(crops, batch_size):
        with machine.autocast():
            found.append(model(normalised(torch.stack(batch).to(machine.device), mean, std)).float().cpu())
        if on_batch is not None:
            on_batch(len(batch))
    return torch.cat(found)
