"""Heads: modules that map a tap to the inputs of an objective. Every head has a copy in the teacher.

A `...HeadSpec` is plain data in a recipe and builds its module for the width of a tap. Modules without a copy in the
teacher (predictors, queues, centres) belong to objectives.

Shapes: B images, C channels of the tap, D of the embedding, K prototypes, H x W cells.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["map", "tokens", "vector"]
Activation = Literal["gelu", "relu"]
LastNorm = Literal["none", "plain", "affine"]


@dataclass(frozen=True)
class HeadSpec(ABC):
    """Plain data that builds a head. `kinds` are the supported kinds of tap."""

    @property
    @abstractmethod
    def kinds(self) -> tuple[Kind, ...]:
        """The supported kinds of tap."""

    @abstractmethod
    def build(self, channels: int) -> nn.Module:
        """Return the module for a tap of `channels` channels."""


class TeacherAware(ABC):
    """A module that differs in the teacher (no stochastic depth, other targets)."""

    @abstractmethod
    def become_teacher(self) -> None:
        """Switch to the teacher's form; the learner calls it once for every such module of the teacher."""


class Layer(nn.Sequential):
    """Linear map or 1x1 convolution, then optional BatchNorm and activation."""


def mlp(
    widths: Sequence[int],
    *,
    on_maps: bool = False,
    norm: bool = True,
    activation: Activation = "relu",
    bias: bool = True,
    last_norm: LastNorm = "none",
    last_bias: bool | None = None,
    init_std: float | None = None,
) -> nn.Sequential:
    """Return an MLP from `widths[0]` through the hidden widths to `widths[-1]`.

    Args:
        widths: Widths of input, hidden layers and output.
        on_maps: Use 1x1 convolutions on [B, C, H, W] instead of linear maps on [B, C].
        norm: Use BatchNorm after every hidden layer.
        activation: Activation after every hidden layer.
        bias: Use a bias in all layers except the last.
        last_norm: BatchNorm after the last layer: "none", "plain" (without affine parameters) or "affine".
        last_bias: Use a bias in the last layer; defaults to `bias`.
        init_std: Standard deviation of truncated normal weights, with zero biases; None uses PyTorch's defaults.
    """
    layers = nn.Sequential()
    last = len(widths) - 2
    for index, (width_in, width_out) in enumerate(itertools.pairwise(widths)):
        with_bias = bias if index < last or last_bias is None else last_bias
        layer = Layer()
        if on_maps:
            layer.add_module("conv", nn.Conv2d(width_in, width_out, 1, bias=with_bias))
        else:
            layer.add_module("linear", nn.Linear(width_in, width_out, bias=with_bias))
        if (index < last and norm) or (index == last and last_norm != "none"):
            batch_norm = nn.BatchNorm2d if on_maps else nn.BatchNorm1d
            layer.add_module("bn", batch_norm(width_out, affine=index < last or last_norm == "affine"))
        if index < last:
            layer.add_module("act", nn.GELU() if activation == "gelu" else nn.ReLU())
        layers.append(layer)
    if init_std is not None:
        init_truncated_normal(layers, init_std)
    return layers


def init_truncated_normal(module: nn.Module, std: float) -> None:
    """Initialise all linear maps and convolutions in `module` with truncated normal weights and zero biases."""
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d)):
            nn.init.trunc_normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def at_least_float32(value: Tensor) -> Tensor:
    """Convert half-precision values to float32; float32 and float64 are unchanged."""
    return value.float() if value.dtype.itemsize < 4 else value


def full_precision(value: Tensor) -> AbstractContextManager[None]:
    """Return a context without autocast on `value`'s device, in which float32 matrix products stay float32."""
    return torch.autocast(value.device.type, enabled=False)
