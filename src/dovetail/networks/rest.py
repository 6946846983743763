"""A network in evaluation for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dovetail.networks.network import Network
from dovetail.networks.undisturbed import undisturbed


@contextmanager
def at_rest(network: Network) -> Iterator[None]:
    """Put the network in evaluation without dropout or gradients within, and leave it as it was."""
    with undisturbed(network), torch.no_grad():
        network.eval()
        network.resting = True
        try:
            yield
        finally:
            network.resting = False
