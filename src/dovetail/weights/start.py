"""Initialises a network: random weights, ImageNet weights of the library, or weights from a file."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dovetail.networks.initialise import initialise
from dovetail.networks.network import Network
from dovetail.networks.parts import Parts, locate_parts
from dovetail.weights.exported import Exported, MatchReport, read_exported
from dovetail.weights.matching import load_into


def begin_from(network: Network, init: str | Path | Exported | None) -> MatchReport | None:
    """Load the starting weights of a network.

    Args:
        network: Network whose parameters are written in place.
        init: None keeps the random weights. "imagenet" loads supervised weights into the encoder (see
            `dovetail.networks.initialise`). Anything else is the folder or file of an exported run, or a weight file
            of another program, which must contain the whole encoder. A decoder that it lacks keeps its weights.

    Returns:
        Report of the tensors that were loaded from a file, or None without a file.

    Raises:
        WeightsError: The weights cannot be downloaded or read, or do not fit.
    """
    if init is None or init == "imagenet":
        initialise(network, "imagenet" if init else None)
        return None
    exported = init if isinstance(init, Exported) else read_exported(init, words=("imagenet",))
    # Tensors that an earlier run did not train may have been trained before it.
    exported = replace(exported, info={**exported.info, "untrained": []} if exported.info else {})
    parts = locate_parts(network.model) or Parts(network.encoder_prefix, network.decoder_prefixes)
    return load_into(network.model, exported, parts=parts, heads=True)
