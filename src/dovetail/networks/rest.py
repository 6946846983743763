"""Temporary evaluation mode of a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from dovetail.networks.network import Network
from dovetail.networks.undisturbed import undisturbed


@contextmanager
def at_rest(network: Network) -> Iterator[None]:
    """Use evaluation mode without dropout and gradients in this context, and restore the mode afterwards."""
    with undisturbed(network), torch.no_grad():
        network.eval()
        network.resting = True
        try:
            yield
        finally:
            network.resting = False
