"""Groups of parameters for an optimiser, and the learning rates that all three kinds of fine-tuning give them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn


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
        weight_decay: Of tensors with more than one dimension.
        decay_vectors: Whether it holds for biases and norms too.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, value in named:
        decay = weight_decay if value.dim() > 1 or decay_vectors else 0.0
        groups.setdefault((scales[name], decay), []).append(value)
    return [
        {"params": values, "lr": lr * scale, "peak_lr": lr * scale, "weight_decay": decay}
        for (scale, decay), values in groups.items()
    ]


def set_rate(optimiser: torch.optim.Optimizer, share: float) -> None:
    """Set every group's learning rate to `share` of its peak."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak_lr"] * share
