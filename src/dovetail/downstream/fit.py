"""Fine-tuning loop, optimiser and common options of all tasks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from dovetail.downstream.machine import ahead, checked_loss

OnStep = Callable[[int, float], None]
"""Called after every step with the step (from 0) and the loss."""

Batch = TypeVar("Batch")

# Position embeddings and tokens of a ViT have three dimensions, but papers do not decay them, just like biases.
_TOKENS = re.compile(r"(?:^|\.)(?:pos_embed|(?:cls|reg|dist)_token)$")


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """Fine-tuning options of all tasks.

    Attributes:
        steps: Optimiser steps.
        batch_size: Images per step.
        optimiser: "adamw" or "sgd" (momentum 0.9).
        lr: Peak learning rate.
        layer_decay: Factor of the learning rate from each encoder layer to the one before it. 1 disables it.
        weight_decay: Weight decay of tensors with more than one dimension.
        decay_vectors: Whether to decay biases and norms, too.
        warmup_steps: Steps of linear warm-up.
        drops: Fractions of the steps after which the learning rate is divided by 10.
        seed: Seed of image order and augmentation.
    """

    steps: int = 1000
    batch_size: int = 16
    optimiser: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    layer_decay: float = 1.0
    weight_decay: float = 1e-4
    decay_vectors: bool = False
    warmup_steps: int = 0
    drops: tuple[float, ...] = ()
    seed: int = 0

    def decayed(self, step: int) -> float:
        """Return the learning rate at `step` relative to its peak, without warm-up and drops."""
        return 1.0

    def rate_share(self, step: int) -> float:
        """Return the learning rate at `step` relative to its peak."""
        warmup = min((step + 1) / (self.warmup_steps + 1), 1.0)
        dropped = 0.1 ** sum(step >= drop * self.steps for drop in self.drops)
        return float(warmup * dropped * self.decayed(step))

    def places(self, step: int) -> range:
        """Return the positions of a step's images in the endless sequence of epochs (see `item_at`)."""
        return range(step * self.batch_size, (step + 1) * self.batch_size)


def fit(
    optimiser: torch.optim.Optimizer,
    options: FitOptions,
    batch: Callable[[int], Batch],
    loss_of: Callable[[Batch, int], Tensor],
    *,
    threads: int = 0,
    on_step: OnStep | None = None,
) -> list[float]:
    """Take all optimiser steps and return their losses.

    Args:
        optimiser: Optimiser with groups from `parameter_groups`.
        options: Number of steps and learning rates.
        batch: Returns the batch of a step, as a pure function.
        loss_of: Returns the scalar loss for a batch and a step.
        threads: Number of threads that prefetch batches. The result does not depend on it.
        on_step: See `OnStep`.

    Raises:
        DovetailError: The loss becomes NaN or infinite.
    """
    losses: list[float] = []
    for step, inputs in enumerate(ahead(batch, range(options.steps), threads=threads)):
        set_rate(optimiser, options.rate_share(step))
        loss = loss_of(inputs, step)
        losses.append(checked_loss(loss, step))
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
        if on_step is not None:
            on_step(step, losses[-1])
    return losses


def optimiser_of(
    named: Iterable[tuple[str, nn.Parameter]],
    scales: Mapping[str, float],
    options: FitOptions,
    *,
    fused: bool | None = None,
) -> torch.optim.Optimizer:
    """Return an optimiser for named parameters, with one group for each learning rate and weight decay.

    Args:
        named: Names and parameters.
        scales: Learning rate factor of each parameter.
        options: Optimiser and its hyperparameters.
        fused: Whether AdamW uses a fused kernel. None is torch's default.
    """
    groups = parameter_groups(
        named, scales, lr=options.lr, weight_decay=options.weight_decay, decay_vectors=options.decay_vectors
    )
    if options.optimiser == "sgd":
        return torch.optim.SGD(groups, momentum=0.9)
    return torch.optim.AdamW(groups, fused=fused)


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    scales: Mapping[str, float],
    *,
    lr: float,
    weight_decay: float,
    decay_vectors: bool = False,
) -> list[dict[str, Any]]:
    """Return a torch parameter group with its `peak_lr` for each learning rate and weight decay.

    Args:
        named: Names and parameters.
        scales: Learning rate factor of each parameter.
        lr: Peak learning rate for a factor of 1.
        weight_decay: Weight decay of tensors with more than one dimension, except positions and tokens of ViTs.
        decay_vectors: Whether to decay these, biases and norms, too.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, value in named:
        decays = decay_vectors or (value.dim() > 1 and not _TOKENS.search(name))
        groups.setdefault((scales[name], weight_decay if decays else 0.0), []).append(value)
    return [
        {"params": values, "lr": lr * scale, "peak_lr": lr * scale, "weight_decay": decay}
        for (scale, decay), values in groups.items()
    ]


def set_rate(optimiser: torch.optim.Optimizer, share: float) -> None:
    """Set the learning rate of every group to `share` times its peak."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak_lr"] * share
