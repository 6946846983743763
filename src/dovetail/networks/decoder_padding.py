"""How a decoder pads its maps while it is pre-trained."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from dovetail.networks.network import Network
from dovetail.networks.padding import ReflectingConv2d, pads_zeros
from dovetail.recipe import DecoderPadding


@contextmanager
def decoder_padded(network: Network, padding: DecoderPadding) -> Iterator[None]:
    """Let the decoder's convolutions pad as told within.

    Those that do not pad with zeros stay as they are, and so do transposed ones and subclasses of `nn.Conv2d`. Not for
    a decoder that recomputes its own activations in the backward pass, as that happens outside of this context.

    Args:
        network: Its parameters and buffers are not touched.
        padding: "zeros" changes nothing. "reflect" mirrors the map at its border.
    """
    convolutions = padding_convolutions(network) if padding == "reflect" else []
    # A class for a class, and no closures: a compiled network sees the same one in every step.
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
