"""Networks that map a view to named taps: timm, segmentation_models_pytorch, torchvision, custom modules.

Names in `__all__` are public. They are imported on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dovetail.public import on_first_use

if TYPE_CHECKING:
    from dovetail.networks.build import build_network
    from dovetail.networks.known import list_models
    from dovetail.networks.network import Network, at_points, decoder_taps, deepest_encoder_tap, finest_decoder_tap
    from dovetail.networks.vit_attention import Rotations, Streams, takes_queries, two_streams

_PUBLIC = {
    "Network": "dovetail.networks.network",
    "Rotations": "dovetail.networks.vit_attention",
    "Streams": "dovetail.networks.vit_attention",
    "at_points": "dovetail.networks.network",
    "build_network": "dovetail.networks.build",
    "decoder_taps": "dovetail.networks.network",
    "deepest_encoder_tap": "dovetail.networks.network",
    "finest_decoder_tap": "dovetail.networks.network",
    "list_models": "dovetail.networks.known",
    "takes_queries": "dovetail.networks.vit_attention",
    "two_streams": "dovetail.networks.vit_attention",
}

__all__ = [
    "Network",
    "Rotations",
    "Streams",
    "at_points",
    "build_network",
    "decoder_taps",
    "deepest_encoder_tap",
    "finest_decoder_tap",
    "list_models",
    "takes_queries",
    "two_streams",
]

__getattr__, __dir__ = on_first_use(__name__, _PUBLIC)
