"""Where the weights of a network start: at random, at the library's ImageNet weights, or at a file's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dovetail.networks.initialise import initialise
from dovetail.networks.network import Network
from dovetail.networks.parts import Parts, locate_parts
from dovetail.weights.exported import Exported, MatchReport, read_exported
from dovetail.weights.matching import load_into


def begin_from(network: Network, init: str | Path | Exported | None) -> MatchReport | None:
    """Give a network its starting weights.

    Args:
        network: The network; its parameters are written in place.
        init: None leaves it as it is; "imagenet" takes supervised weights for the encoder, see
            `dovetail.networks.initialise`; else the file of an exported run, or a file of another program's. A file
            must hold the whole encoder. A decoder that it does not have is left as it is.

    Returns:
        What was loaded from a file; None without one.

    Raises:
        WeightsError: When weights cannot be fetched or read, or do not fit.
    """
    if init is None or init == "imagenet":
        initialise(network, "imagenet" if init else None)
        return None
    exported = init if isinstance(init, Exported) else read_exported(init)
    # What an earlier run did not train may have been trained before it.
    exported = replace(exported, info={**exported.info, "untrained": []} if exported.info else {})
    parts = locate_parts(network.model) or Parts(network.encoder_prefix, network.decoder_prefixes)
    return load_into(network.model, exported, parts=parts, heads=True)
