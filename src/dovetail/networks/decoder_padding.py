"""Padding of a decoder's maps during pre-training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from dovetail.networks.network import Network
from dovetail.networks.padding import ReflectingConv2d, pads_zeros
from dovetail.recipe import DecoderPadding


@contextmanager
def decoder_padded(network: Network, padding: DecoderPadding) -> Iterator[None]:
    """Change the padding of the decoder's convolutions in this context.

    Convolutions without zero padding, transposed convolutions and subclasses of `nn.Conv2d` do not change. Do not use
    it for a decoder that recomputes activations in the backward pass, which happens outside of this context.

    Args:
        network: Network whose parameters and buffers do not change.
        padding: "zeros" changes nothing. "reflect" mirrors the map at its border.
    """
    convolutions = padding_convolutions(network) if padding == "reflect" else []
    # Replace the class instead of using closures, so that a compiled network sees the same class in every step.
    for convolution in convolutions:
        convolution.__class__ = ReflectingConv2d
    try:
        yield
    finally:
        for convolution in convolutions:
            convolution.__class__ = nn.Conv2d


def padding_convolutions(network: Network) -> list[nn.Conv2d]:
    """Return the convolutions of a network's decoder that pad their maps with zeros."""
    prefixes = network.decoder_prefixes
    return [
        module
        for name, module in network.model.named_modules()
        if prefixes and f"{name}.".startswith(prefixes) and type(module) is nn.Conv2d and pads_zeros(module)
    ]
