"""Feature pyramids on ViTs: the levels of the whole module, next to the ViT's own taps, from one pass."""

from __future__ import annotations

import pytest
import torch

from dovetail.errors import DovetailError
from dovetail.networks.build import build_network
from dovetail.networks.construct import construct
from dovetail.networks.vit_fpn import ViTFPN, ViTFPNNetwork, build_vit_fpn, evenly_spaced, rescale
from dovetail.recipe import LateralDropout, NetworkRules
from tests.networks.vits import network, tiny_eva, tiny_vit, view

LEVELS = {"p2": "0", "p3": "1", "p4": "2", "p5": "3"}


def pyramid(*, depth: int = 3, eva: bool = False) -> ViTFPNNetwork:
    """Return a tiny ViT with patches of 8 under a narrow pyramid."""
    torch.manual_seed(0)
    encoder = tiny_eva(use_rot_pos_emb=True) if eva else tiny_vit(depth=depth)
    return build_vit_fpn(ViTFPN(encoder, channels=16)).eval()  # type: ignore[no-any-return]


@pytest.mark.parametrize("eva", [False, True])
def test_levels_are_those_of_the_whole_module(eva: bool) -> None:
    net, seen = pyramid(eva=eva), view()
    whole = net.model(seen.pixels)
    outputs = net(seen, list(net.taps))
    for tap, name in LEVELS.items():
        torch.testing.assert_close(outputs[tap], whole[name], rtol=1e-4, atol=1e-5)
        assert outputs[tap].shape[2] == view().pixels.shape[2] // net.taps[tap].stride
        torch.testing.assert_close(net(seen, [tap])[tap], whole[name], rtol=1e-4, atol=1e-5)


def test_token_taps_are_those_of_the_bare_vit() -> None:
    net, seen = pyramid(), view()
    bare = network()
    bare.model.load_state_dict(net.model.encoder.state_dict())
    taps = ["cls", "patches", "queries", "c3"]
    for tap, value in bare(seen, taps).items():
        assert torch.equal(net(seen, [*taps, "p2"])[tap], value)


def test_only_what_a_level_needs_is_trained() -> None:
    net = pyramid()
    net.prune(["p5"])
    assert "decoder.fpn.layer_blocks.0.0.weight" in net.unreached
    assert "decoder.scales.0.0.weight" in net.unreached
    assert "encoder.norm.weight" in net.unreached
    assert "encoder.blocks.2.mlp.fc2.weight" not in net.unreached
    net.prune(["cls", "p2"])
    assert {name.split(".")[3] for name in net.unreached} == {"1", "2", "3"}
    assert all(name.startswith("decoder.fpn.layer_blocks.") for name in net.unreached)


def test_laterals_drop_but_the_deepest() -> None:
    net, seen = pyramid(), view()
    whole = net(seen, ["p5", "p2"])
    net = net.following(NetworkRules(lateral_dropout=LateralDropout(p=0.5)))
    dropped = net(seen, ["p5", "p2"])
    assert torch.equal(dropped["p5"], whole["p5"])
    assert not torch.allclose(dropped["p2"], whole["p2"])


@pytest.mark.parametrize(("patch", "stride", "side"), [(16, 4, 32), (16, 8, 16), (16, 16, 8), (8, 32, 2), (32, 4, 64)])
def test_rescaling_reaches_its_stride(patch: int, stride: int, side: int) -> None:
    assert rescale(4, patch, stride)(torch.randn(1, 4, 8, 8)).shape == (1, 4, side, side)


def test_blocks_are_evenly_spaced() -> None:
    assert evenly_spaced(12) == [2, 5, 8, 11]
    assert evenly_spaced(24) == [5, 11, 17, 23]
    assert evenly_spaced(2) == [0, 0, 0, 1]


def test_named_pyramids_build_and_load_back() -> None:
    net = build_network("timm/test_vit+fpn", image_size=64)
    assert isinstance(net, ViTFPNNetwork)
    construct(net.constructor).load_state_dict(net.model.state_dict(), strict=True)
    without_norm = build_network("timm/test_vit+fpn-bias", image_size=64)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in without_norm.modules())
    assert isinstance(build_network(net.model), ViTFPNNetwork)


def test_mistakes_are_told() -> None:
    with pytest.raises(DovetailError, match="no decoder of a ViT 'fnp'; did you mean 'fpn'"):
        build_vit_fpn("vit_tiny_patch16_224+fnp")
    with pytest.raises(DovetailError, match="does not support patches of 14"):
        build_vit_fpn("eva02_tiny_patch14_224+fpn")
