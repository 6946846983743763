"""Parts of a network that are left out at random in training: stochastic depth and dropout."""

from __future__ import annotations

from timm.layers.drop import DropPath
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torchvision.ops import StochasticDepth


def keep_everything(network: nn.Module) -> None:
    """Switch stochastic depth and dropout off for good, in training too."""
    for module in network.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
        elif isinstance(module, (StochasticDepth, _DropoutNd)):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
        elif hasattr(module, "_drop_connect_rate"):  # smp's EfficientNets hand it to a function
            module._drop_connect_rate = 0.0  # type: ignore[assignment]
