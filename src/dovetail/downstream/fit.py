"""Fine-tuning, the same for every task: what its options share, the optimiser, the learning rates and the loop."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from dovetail.downstream.machine import ahead, checked_loss

OnStep = Callable[[int, float], None]
"""Called after every step with its number, from 0, and its loss."""

Batch = TypeVar("Batch")

# A ViT's positions and tokens are tensors of three dimensions, which papers decay as little as biases.
_TOKENS = re.compile(r"(?:^|\.)(?:pos_embed|(?:cls|reg|dist)_token)$")


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """How a model is fine-tuned, for every task.

    Attributes:
        steps: Optimiser steps.
        batch_size: Images in a step.
        optimiser: "adamw" or "sgd" (momentum 0.9).
        lr: Peak learning rate.
        layer_decay: Factor from the rate of an encoder's layer to that of the layer before it; 1 gives all one rate.
        weight_decay: Of tensors with more than one dimension.
        decay_vectors: Whether it holds for biases and norms too.
        warmup_steps: Steps of linear warm-up.
        drops: Shares of the steps after which the rate is a tenth of what it was.
        seed: Of order and augmentation.
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
        """Return the share of its peak that a rate has at `step` but for warm-up and drops."""
        return 1.0

    def rate_share(self, step: int) -> float:
        """Return the share of its peak that a rate has at `step`."""
        warmup = min((step + 1) / (self.warmup_steps + 1), 1.0)
        dropped = 0.1 ** sum(step >= drop * self.steps for drop in self.drops)
        return float(warmup * dropped * self.decayed(step))

    def places(self, step: int) -> range:
        """Return the places of a step's images in the endless list of passes; see `item_at`."""
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
    """Take all optimiser steps and return the loss of each.

    Args:
        optimiser: With groups as of `parameter_groups`.
        options: How many steps, and their learning rates.
        batch: Step -> what is learned from, a pure function.
        loss_of: Batch, step -> the loss, a scalar.
        threads: Threads that prepare batches ahead of their use; the result does not depend on them.
        on_step: See `OnStep`.

    Raises:
        DovetailError: Where the loss stops being a number.
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
    """Return the optimiser of named parameters, with one group for each learning rate and weight decay.

    Args:
        named: Names and parameters.
        scales: Factor on the learning rate of each.
        options: Which optimiser, and its numbers.
        fused: Whether AdamW takes its step in one kernel; None leaves it to torch.
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
    """Return a group for each learning rate and weight decay, as torch's optimisers take them, with its `peak_lr`.

    Args:
        named: Names and parameters.
        scales: Factor on `lr` of each.
        lr: Peak learning rate where the factor is 1.
        weight_decay: Of tensors with more than one dimension, positions and tokens of ViTs left out.
        decay_vectors: Whether it holds for these, biases and norms too.
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
    """Set every group's learning rate to `share` of its peak."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak_lr"] * share
