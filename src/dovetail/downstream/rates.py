"""Groups of parameters for an optimiser, and the learning rates that all three kinds of fine-tuning give them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn

# A ViT's positions and tokens are tensors of three dimensions, which papers decay as little as biases.
_TOKENS = re.compile(r"(?:^|\.)(?:pos_embed|(?:cls|reg|dist)_token)$")


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
