"""Stochastic depth and dropout of a network."""

from __future__ import annotations

from timm.layers.drop import DropPath
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth


def keep_everything(network: nn.Module) -> None:
    """Disable stochastic depth and dropout permanently, also in training mode."""
    for module in network.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
        elif isinstance(module, (StochasticDepth, _DropoutNd)):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
        elif hasattr(module, "_drop_connect_rate"):  # smp's EfficientNets pass it to a function
            module._drop_connect_rate = 0.0  # type: ignore[assignment]
