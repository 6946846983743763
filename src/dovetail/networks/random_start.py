"""Random initialisation of an encoder as in a method's published code, if it differs from the library's.

timm's ResNets initialise the last norm of every residual block with zeros, torchvision's and
segmentation_models_pytorch's with ones; all three initialise convolutions by fan out. timm's ViTs initialise the class
token with 1e-6.
"""

from __future__ import annotations

import re

import torch
from torch import Generator, nn

from dovetail.errors import ModelError, WeightsError
from dovetail.networks.names import is_resnet
from dovetail.networks.network import Network
from dovetail.networks.vit import ViTNetwork
from dovetail.networks.vit_embed import sincos_grid
from dovetail.recipe import EncoderInit

_BLOCK_NORM = re.compile(r"(layer\d\.\d+\.)bn(\d)\.weight")


@torch.no_grad()
def begin_as(network: Network, init: EncoderInit, *, seed: int) -> int:
    """Initialise an encoder with random weights as in a method's published code.

    The draws only depend on `seed` and do not change torch's random state.

    Args:
        network: Network with a ResNet or ViT, changed in place; other encoders do not change.
        init: See `EncoderInit`.
        seed: Seed of the run.

    Returns:
        Number of initialised tensors.
    """
    drawn = torch.Generator().manual_seed(seed)
    weights = {
        name.removeprefix(network.encoder_prefix): value
        for name, value in network.model.named_parameters()
        if name.startswith(network.encoder_prefix)
    }
    written = 0
    if is_resnet(list(weights)):
        written += _convolutions(weights, init, drawn) + _last_norms(weights, init)
    if init.class_token_std is not None and "cls_token" in weights and weights["cls_token"].dim() == 3:
        nn.init.trunc_normal_(weights["cls_token"], std=init.class_token_std, generator=drawn)
        written += 1
    return written


@torch.no_grad()
def fix_positions(network: Network) -> None:
    """Set the fixed sine-cosine position embeddings of a recipe (`QueryRule.positions`); see `check_positions`."""
    if isinstance(network, ViTNetwork) and network.vit.pos_embed is not None:
        network.vit.pos_embed.copy_(sincos_grid(network.vit))


def check_positions(network: Network) -> None:
    """Raise `DovetailError` unless a network has the fixed sine-cosine position embeddings of its recipe.

    A ViT with learned position embeddings does not work with others, and query tokens would have no position.
    """
    if not isinstance(network, ViTNetwork) or network.vit.pos_embed is None:
        raise ModelError(
            "The recipe uses sine-cosine positions, but the model has no position embedding; choose a ViT with one, or "
            "add --recipe.query_positions learned."
        )
    if not torch.allclose(network.vit.pos_embed.float().cpu(), sincos_grid(network.vit), atol=1e-2):
        raise WeightsError(
            "The recipe uses sine-cosine positions, but the initial weights have learned ones; add "
            "--recipe.query_positions learned, or start from random weights."
        )


def _convolutions(weights: dict[str, nn.Parameter], init: EncoderInit, drawn: Generator) -> int:
    """Initialise a ResNet's convolutions again if the library uses another fan."""
    convolutions = [value for value in weights.values() if value.dim() == 4]
    if init.fan != "in":
        return 0
    for value in convolutions:
        nn.init.kaiming_normal_(value, mode="fan_in", nonlinearity="relu", generator=drawn)
    return len(convolutions)


def _last_norms(weights: dict[str, nn.Parameter], init: EncoderInit) -> int:
    """Set the last norm of every residual block to zeros or ones."""
    if init.zero_gamma is None:
        return 0
    found = [match for match in map(_BLOCK_NORM.fullmatch, weights) if match]
    last = {match[1]: max(int(other[2]) for other in found if other[1] == match[1]) for match in found}
    for block, number in last.items():
        weights[f"{block}bn{number}.weight"].fill_(0.0 if init.zero_gamma else 1.0)
    return len(last)
