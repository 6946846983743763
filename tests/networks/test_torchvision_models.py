"""torchvision's models by name: their taps, and where their parts are."""

from __future__ import annotations

import pytest

from dovetail.networks.build import build_network
from dovetail.networks.parts import locate_parts
from dovetail.networks.probe import trial_view

TAPS = {
    "lraspp_mobilenet_v3_large": {"c1", "c2", "c3", "c4", "p3"},
    "fcos_resnet50_fpn": {"c1", "c2", "c3", "c4", "c5", "p3", "p4", "p5"},
    "keypointrcnn_resnet50_fpn": {"c1", "c2", "c3", "c4", "c5", "p2", "p3", "p4", "p5"},
    "fasterrcnn_mobilenet_v3_large_fpn": {"c1", "c2", "c3", "c4", "c5", "p5"},
    "ssd300_vgg16": {"c3", "c4"},
    "ssdlite320_mobilenet_v3_large": {"c4", "c5"},
}


@pytest.mark.parametrize("name", TAPS)
def test_taps_and_parts(name: str) -> None:
    network = build_network(f"torchvision/{name}", image_size=128)
    assert set(network.taps) == TAPS[name]
    parts = locate_parts(network.model)
    assert parts is not None
    assert (parts.encoder_prefix, parts.decoder_prefixes) == (network.encoder_prefix, network.decoder_prefixes)
    network.prune(list(network.taps))
    reached = {key for key, _ in network.model.named_parameters()} - set(network.unreached)
    assert {parts.split(key)[0] for key in reached} <= {"encoder", "decoder"}
    answers = network.eval()(trial_view(network, size_px=128, batch_size=1), list(network.taps))
    assert {tap: (value.shape[1], 128 // value.shape[-1]) for tap, value in answers.items()} == {
        tap: (one.channels, one.stride) for tap, one in network.taps.items()
    }
