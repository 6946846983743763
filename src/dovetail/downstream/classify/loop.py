"""Full fine-tuning for classification: layer decay, label smoothing, and the augmentation of `augment_classes`.

AdamW, linear warm-up, cosine decay. The batch of step k is a pure function of (seed, k).

Shapes: B images, C channels, S pixels a side, K classes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dovetail.downstream.classify.augment import erased, mixed, randaugmented
from dovetail.downstream.fit import FitOptions, OnStep, fit, optimiser_of
from dovetail.downstream.labels.class_sets import ClassSet
from dovetail.downstream.labels.images import random_crop
from dovetail.downstream.labels.subsets import item_at
from dovetail.downstream.machine import Machine, normalised
from dovetail.downstream.probe.features import Features
from dovetail.errors import DataError
from dovetail.networks.layer_decay import layer_scales
from dovetail.sizes import Size


@dataclass(frozen=True, kw_only=True)
class ClassifyOptions(FitOptions):
    """Options for fine-tuning a classifier.

    Attributes:
        classes: Number of classes K.
        size: Size of the crops in pixels: the side of a square, or (height, width).
        mean: Mean of each channel in [0, 1].
        std: Standard deviation of each channel.
        mixup: Parameter of mixup's Beta distribution; 0 disables mixup.
        cutmix: Parameter of CutMix's Beta distribution; 0 disables CutMix.
        randaugment: Magnitude of RandAugment; 0 disables it.
        random_erasing: Probability of erasing a rectangle of an image.
        label_smoothing: Label smoothing.
        smallest_area: Smallest area of a random crop relative to the image.
    """

    batch_size: int = 64
    layer_decay: float = 0.75
    weight_decay: float = 0.05
    classes: int
    size: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]
    mixup: float = 0.0
    cutmix: float = 0.0
    randaugment: int = 0
    random_erasing: float = 0.0
    label_smoothing: float = 0.1
    smallest_area: float = 0.08

    def rate_share(self, step: int) -> float:
        """Return the learning rate at `step` relative to its peak."""
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


def build_optimiser(model: nn.Module, options: ClassifyOptions) -> torch.optim.Optimizer:
    """Return AdamW with one parameter group for each layer and weight decay."""
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    scales = layer_scales([name for name, _ in named], encoder=("features.",), decay=options.layer_decay)
    return optimiser_of(named, scales, options)


def training_batch(data: ClassSet, options: ClassifyOptions, step: int) -> tuple[Tensor, Tensor]:
    """Return crops [B, C, S, S] uint8 and labels [B] of a step, a pure function of (seed, step)."""
    images, labels = [], []
    for place in options.places(step):
        rng = np.random.default_rng((options.seed, 1, place))
        index = item_at(place, count=len(data), seed=options.seed)
        crop = random_crop(
            data,
            index,
            rng,
            channels=len(options.mean),
            size=options.size,
            smallest_area=options.smallest_area,
        )
        if options.randaugment:
            crop = randaugmented(crop, magnitude=options.randaugment, mean=options.mean, key=(options.seed, 5, place))
        images.append(crop)
        labels.append(data.labels[index])
    return torch.stack(images), torch.tensor(labels)


def training_inputs(images: Tensor, labels: Tensor, options: ClassifyOptions, step: int) -> tuple[Tensor, Tensor]:
    """Return normalised pixels [B, C, S, S], erased and mixed, and targets [B, K], a pure function of (seed, step)."""
    pixels = normalised(images, options.mean, options.std)
    if options.random_erasing > 0:
        pixels = erased(pixels, probability=options.random_erasing, key=(options.seed, 6, step))
    return mixed(
        pixels,
        labels,
        classes=options.classes,
        mixup=options.mixup,
        cutmix=options.cutmix,
        smoothing=options.label_smoothing,
        key=(options.seed, 4, step),
    )


def finetune_classification(
    model: Classifier,
    data: ClassSet,
    options: ClassifyOptions,
    *,
    machine: Machine,
    on_step: OnStep | None = None,
) -> list[float]:
    """Fine-tune `model` in place and return the loss of every step.

    Raises:
        DovetailError: The training set is empty, or the loss becomes NaN or infinite.
    """
    if len(data) == 0:
        raise DataError("The training set is empty; add at least one image.")
    machine.place(model).train()

    def loss_of(batch: tuple[Tensor, Tensor], step: int) -> Tensor:
        images, labels = (one.to(machine.device) for one in batch)
        pixels, targets = training_inputs(images, labels, options, step)
        with machine.autocast():
            logits = model(pixels)
        return F.cross_entropy(logits.float(), targets)

    batch = partial(training_batch, data, options)
    return fit(build_optimiser(model, options), options, batch, loss_of, threads=machine.threads, on_step=on_step)
