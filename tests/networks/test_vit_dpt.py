"""DPT with its ViT's tokens: the library's own maps, and timm's own tokens."""

from __future__ import annotations

from typing import Any

import pytest
import segmentation_models_pytorch as smp
import torch
from torch import Tensor

from dovetail.networks.build import build_network
from dovetail.networks.construct import construct
from dovetail.networks.vit_dpt import DPTNetwork
from dovetail.recipe import LateralDropout, NetworkRules
from dovetail.views.view import View
from tests.networks.vits import view

STAGES = ["p4", "p3", "p2", "p1"]


@pytest.fixture(scope="module")
def net() -> DPTNetwork:
    """A DPT on timm's smallest ViT, with patches of 16."""
    torch.manual_seed(0)
    made = build_network("smp/dpt/tu-test_vit", image_size=64).eval()
    assert isinstance(made, DPTNetwork)
    return made


def seen_by(net: DPTNetwork) -> View:
    """Return a view of 64 pixels with queries of its patch."""
    made = view(side=64)
    patch = net.taps["patches"].stride
    queries = torch.randn(2, 3, 3, patch, patch, generator=torch.Generator().manual_seed(1))
    return View(made.pixels, made.box, made.flipped, made.source_px, queries=queries)


def recorded(model: Any, pixels: Tensor) -> list[Tensor]:
    """Return the outputs of the library's fusion blocks, deepest first, from its own forward."""
    outputs: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
        for block in model.decoder.fusion_blocks
    ]
    model(pixels)
    for hook in hooks:
        hook.remove()
    return outputs


def test_maps_are_the_librarys(net: DPTNetwork) -> None:
    seen = seen_by(net)
    expected = recorded(net.model, seen.pixels)
    outputs = net(seen, list(net.taps))
    for tap, value in zip(STAGES, expected, strict=True):
        torch.testing.assert_close(outputs[tap], value, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(net(seen, [tap])[tap], value, rtol=1e-4, atol=1e-5)
        assert outputs[tap].shape[2] * net.taps[tap].stride == 64
        assert outputs[tap].shape[1] == net.taps[tap].channels


def test_tokens_are_timms(net: DPTNetwork) -> None:
    seen = seen_by(net)
    tokens = net.vit.forward_features(seen.pixels)
    outputs = net(seen, ["cls", "patches", "queries", "p1"])
    assert torch.equal(outputs["cls"], tokens[:, 0])
    assert torch.equal(outputs["patches"], tokens[:, net.vit.num_prefix_tokens :])
    assert outputs["queries"].shape == (2, 3, tokens.shape[2])


def test_laterals_drop_but_the_deepest(net: DPTNetwork) -> None:
    seen = seen_by(net)
    whole = net(seen, ["p4", "p1"])
    net = net.following(NetworkRules(lateral_dropout=LateralDropout(p=0.5)))
    dropped = net(seen, ["p4", "p1"])
    assert torch.equal(dropped["p4"], whole["p4"])
    assert not torch.allclose(dropped["p1"], whole["p1"])


def test_the_export_loads_into_the_library(net: DPTNetwork) -> None:
    construct(net.constructor).load_state_dict(net.model.state_dict(), strict=True)
    assert isinstance(build_network(net.model), DPTNetwork)


def test_only_what_a_map_needs_is_trained() -> None:
    net = build_network("smp/dpt/tu-test_vit", image_size=64)
    net.prune(["cls", "p4"])
    assert "decoder.fusion_blocks.0.project.weight" not in net.unreached
    assert "decoder.fusion_blocks.3.project.weight" in net.unreached
    assert "segmentation_head.head.0.weight" in net.unreached


def test_other_architectures_stay_as_they_are() -> None:
    network = build_network(smp.Unet("resnet18", encoder_weights=None), image_size=64)
    assert not isinstance(network, DPTNetwork)
