"""The user's own module, by the paths of its parts."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from torch import Tensor, nn

from dovetail.errors import DovetailError
from dovetail.networks.build import build_network
from dovetail.networks.network import Network
from dovetail.networks.probe import trial_view
from dovetail.recipe import LateralDropout


class Encoder(nn.Module):
    """Maps of strides 2, 4 and 8 in the form asked for."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Conv2d(c, d, 3, stride=2, padding=1) for c, d in ((3, 4), (4, 6), (6, 8)))
        self.form = form

    def forward(self, pixels: Tensor) -> list[Tensor] | tuple[Tensor, ...] | dict[str, Tensor]:
        maps = []
        for stage in self.stages:
            pixels = stage(pixels)
            maps.append(pixels)
        if self.form == "dict":
            return OrderedDict(zip("abc", maps, strict=True))
        return tuple(maps) if self.form == "tuple" else maps


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fuse = nn.Conv2d(10, 5, 1)

    def forward(self, features: list[Tensor] | tuple[Tensor, ...] | dict[str, Tensor]) -> Tensor:
        maps = list(features.values()) if isinstance(features, dict) else list(features)
        _, middle, deep = maps
        return self.fuse(torch.cat([middle, nn.functional.interpolate(deep[:, :4], scale_factor=2)], dim=1))


class Model(nn.Module):
    def __init__(self, form: str = "list") -> None:
        super().__init__()
        self.body = nn.Sequential(OrderedDict(encoder=Encoder(form)))
        self.neck = Decoder()
        self.classifier = nn.Conv2d(5, 2, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.classifier(self.neck(self.body(pixels)))


def own(form: str = "list", *, decoder: str | None = "neck") -> Network:
    return build_network(Model(form), encoder="body.encoder", decoder=decoder, image_size=32)


def run(network: Network, *taps: str) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return network(trial_view(network, size_px=32, batch_size=2), taps)


@pytest.mark.parametrize("form", ["list", "tuple", "dict"])
def test_taps_are_found_and_answered(form: str) -> None:
    network = own(form)
    assert {name: (tap.channels, tap.stride) for name, tap in network.taps.items()} == {
        "c1": (4, 2),
        "c2": (6, 4),
        "c3": (8, 8),
        "p2": (5, 4),
    }
    assert (network.encoder_prefix, network.decoder_prefixes) == ("body.encoder.", ("neck.",))
    assert network.size_multiple == 8
    outputs = run(network, *network.taps)
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "c1": (2, 4, 16, 16),
        "c2": (2, 6, 8, 8),
        "c3": (2, 8, 4, 4),
        "p2": (2, 5, 8, 8),
    }


@pytest.mark.parametrize("form", ["list", "tuple", "dict"])
def test_laterals_are_dropped_on_the_way_to_the_decoder(form: str) -> None:
    network = own(form)
    plain = run(network, "c2", "p2")
    network.lateral_dropout = LateralDropout(p=1.0, kind="path")
    dropped = run(network, "c2", "p2")
    assert torch.equal(plain["c2"], dropped["c2"])
    deep = run(network, "c3")["c3"]
    model = network.model
    assert isinstance(model, Model)
    expected = model.neck([deep, torch.zeros_like(plain["c2"]), deep])
    torch.testing.assert_close(dropped["p2"], expected)


def test_only_reached_parameters_train() -> None:
    network = own()
    network.prune(["c2"])
    assert network.unreached == (
        "body.encoder.stages.2.weight",
        "body.encoder.stages.2.bias",
        "neck.fuse.weight",
        "neck.fuse.bias",
        "classifier.weight",
        "classifier.bias",
    )
    network.prune(["p2"])
    assert network.unreached == ("classifier.weight", "classifier.bias")


def test_the_decoder_rests_for_encoder_taps() -> None:
    network = own()
    ran = []
    handle = network.model.get_submodule("neck").register_forward_hook(lambda *_: ran.append(1))
    run(network, "c3")
    assert not ran
    run(network, "p2")
    assert ran
    handle.remove()


def test_an_encoder_alone() -> None:
    assert set(own(decoder=None).taps) == {"c1", "c2", "c3"}
    whole = build_network(nn.Sequential(nn.Conv2d(3, 7, 4, stride=4)), encoder="", image_size=32)
    assert {name: (tap.channels, tap.stride) for name, tap in whole.taps.items()} == {"c2": (7, 4)}
    assert whole.encoder_prefix == ""


def test_a_part_that_is_missing_or_silent() -> None:
    with pytest.raises(DovetailError, match=r"did you mean 'body.encoder'"):
        build_network(Model(), encoder="body.encodr", image_size=32)
    model = Model()
    model.add_module("spare", nn.Identity())
    with pytest.raises(DovetailError, match="'spare' does not run"):
        build_network(model, encoder="body.encoder", decoder="spare", image_size=32)


def test_a_model_without_maps() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 4))
    with pytest.raises(DovetailError, match="gives no feature map"):
        build_network(flat, encoder="", image_size=32)
