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
from dovetail.recipe import LateralDropout, NetworkRules


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
    network = network.following(NetworkRules(lateral_dropout=LateralDropout(p=1.0, kind="path")))
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
    with pytest.raises(DovetailError, match="returns no feature map"):
        build_network(flat, encoder="", image_size=32)


class Ushaped(nn.Module):
    """A U whose skip path lies between its two parts, as in detectors and nnU-Nets, and a head that no part needs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.skip = nn.Sequential(nn.Conv2d(8, 16, 1), nn.BatchNorm2d(16, affine=False))
        self.fuse = nn.Conv2d(16, 12, 1)
        self.head = nn.Sequential(nn.Conv2d(12, 2, 1), nn.BatchNorm2d(2, affine=False))

    def forward(self, pixels: Tensor) -> Tensor:
        fine = self.stem(pixels)
        deep = nn.functional.interpolate(self.deep(fine), scale_factor=2)
        head: Tensor = self.head(self.fuse(self.skip(fine) + deep))
        return head


def test_what_lies_between_the_parts_is_the_decoders() -> None:
    network = build_network(Ushaped(), encoder="deep", decoder="fuse", image_size=32)
    assert network.between == ("skip.0.weight", "skip.0.bias")
    network.prune(["c2", "p1"])
    assert network.unreached == ("head.0.weight", "head.0.bias")


class Shuffled(nn.Module):
    """A convolution whose map comes with its dimensions in another order."""

    def __init__(self, *order: int, channels: int = 16, pool: int = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 4, stride=4)
        self.order, self.pool = order, pool

    def forward(self, pixels: Tensor) -> Tensor:
        maps: Tensor = self.conv(pixels)
        if self.pool:
            maps = nn.functional.adaptive_avg_pool2d(maps, self.pool)
        return maps.permute(*self.order)


@pytest.mark.parametrize("channels", [8, 16])
@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1)])
def test_channels_are_found_where_they_are(order: tuple[int, ...], channels: int) -> None:
    """Of 8 channels and 8 x 8 cells only another size of image tells which is which."""
    model = Shuffled(*order, channels=channels)
    network = build_network(model, encoder="", image_size=32)
    assert {name: (tap.channels, tap.stride) for name, tap in network.taps.items()} == {"c2": (channels, 4)}
    view = trial_view(network, size_px=32, batch_size=2)
    torch.testing.assert_close(network(view, ["c2"])["c2"], model.conv(view.pixels))


def test_maps_whose_channels_are_not_clear_are_refused() -> None:
    with pytest.raises(DovetailError, match=r"\[1, 8, 16, 8\].*\[1, 24, 16, 24\].*not clearly"):
        build_network(Shuffled(0, 2, 1, 3), encoder="", image_size=32)
    with pytest.raises(DovetailError, match="not clearly"):
        build_network(Shuffled(0, 1, 2, 3, channels=4, pool=4), encoder="", image_size=32)
    pooled = build_network(Shuffled(0, 1, 2, 3, channels=5, pool=4), encoder="", image_size=32)
    assert {tap.channels for tap in pooled.taps.values()} == {5}


def test_laterals_of_a_channels_last_encoder_are_dropped() -> None:
    class Swin(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = Encoder("tuple")
            self.last = Last()
            self.neck = Decoder()
            self.classifier = nn.Conv2d(5, 2, 1)

        def forward(self, pixels: Tensor) -> Tensor:
            maps = self.last(self.encoder(pixels))
            logits: Tensor = self.classifier(self.neck([value.permute(0, 3, 1, 2) for value in maps]))
            return logits

    network = build_network(Swin(), encoder="last", decoder="neck", image_size=32)
    assert {name: tap.channels for name, tap in network.taps.items()} == {"c1": 4, "c2": 6, "c3": 8, "p2": 5}
    plain = run(network, "c2", "p2")
    network = network.following(NetworkRules(lateral_dropout=LateralDropout(p=1.0, kind="path")))
    deep = run(network, "c3")["c3"]
    model = network.model
    assert isinstance(model, Swin)
    expected = model.neck([deep, torch.zeros_like(plain["c2"]), deep])
    torch.testing.assert_close(run(network, "p2")["p2"], expected)


class Last(nn.Module):
    def forward(self, maps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(value.permute(0, 2, 3, 1) for value in maps)


def test_frozen_parameters_stay_frozen() -> None:
    model = Model()
    model.body.requires_grad_(False)
    network = build_network(model, encoder="body.encoder", decoder="neck", image_size=32)
    for _ in range(2):
        network.prune(["p2"])
        assert [name for name, value in model.named_parameters() if value.requires_grad] == [
            "neck.fuse.weight",
            "neck.fuse.bias",
        ]
        assert network.unreached == ("classifier.weight", "classifier.bias")
    with pytest.raises(DovetailError, match="have requires_grad=False"):
        network.prune(["c3"])


class Detector(nn.Module):
    """A pyramid in a flat list of modules, with a head that is the last to run, as in YOLO."""

    def __init__(self) -> None:
        super().__init__()
        stages = [nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 2, 1)]
        self.model = nn.ModuleList([*stages, nn.Conv2d(14, 6, 3, 1, 1), nn.Conv2d(10, 4, 3, 1, 1), nn.Conv2d(4, 2, 1)])

    def forward(self, pixels: Tensor) -> Tensor:
        first = self.model[0](pixels)
        second = self.model[1](first)
        third = nn.functional.interpolate(self.model[2](second), scale_factor=2)
        middle = self.model[3](torch.cat([second, third], dim=1))
        fine = self.model[4](torch.cat([first, nn.functional.interpolate(middle, scale_factor=2)], dim=1))
        head: Tensor = self.model[5](fine)
        return head


@pytest.mark.parametrize("decoder", ["model.3, model.4", ["model.3", "model.4"]])
def test_a_part_of_several_paths(decoder: str | list[str]) -> None:
    network = build_network(Detector(), encoder=["model.1", "model.2"], decoder=decoder, image_size=32)
    assert {name: (tap.channels, tap.stride) for name, tap in network.taps.items()} == {
        "c2": (6, 4),
        "c3": (8, 8),
        "p1": (4, 2),
        "p2": (6, 4),
    }
    assert (network.encoder_prefix, network.decoder_prefixes) == ("model.", ("model.3.", "model.4."))
    network.prune(["c3", "p1"])
    assert network.unreached == ("model.5.weight", "model.5.bias")
    network = network.following(NetworkRules(lateral_dropout=LateralDropout(p=0.5)))
    run(network, "c3")
    with pytest.raises(DovetailError, match="`encoder` has several paths"):
        run(network, "p1")


class ChannelsLast(nn.Module):
    def forward(self, maps: Tensor) -> Tensor:
        return maps.permute(0, 2, 3, 1)


def test_taps_of_ones_own() -> None:
    taps = {"c5": "model.2", "cfine": "model.0", "p_out": "model.4"}
    network = build_network(Detector(), taps=taps, image_size=32)
    assert {name: (tap.channels, tap.stride, tap.part) for name, tap in network.taps.items()} == {
        "c5": (8, 8, "encoder"),
        "cfine": (4, 2, "encoder"),
        "p_out": (4, 2, "decoder"),
    }
    assert {name: tuple(value.shape) for name, value in run(network, "c5", "p_out").items()} == {
        "c5": (2, 8, 4, 4),
        "p_out": (2, 4, 16, 16),
    }
    both = build_network(
        Model(), encoder="body", decoder="neck", taps={"p2": "neck.fuse", "c3": "body.encoder.stages.2"}
    )
    assert (both.encoder_prefix, both.decoder_prefixes) == ("body.", ("neck.",))
    assert set(both.taps) == {"c3", "p2"}
    for wrong, sentence in (
        ({"x": "model.0"}, "start its name with 'c'"),
        ({"p2": "model.4"}, "The encoder is not specified"),
        ({"c2": "model.9"}, "no part of Detector 'model.9'"),
    ):
        with pytest.raises(DovetailError, match=sentence):
            build_network(Detector(), taps=wrong, image_size=32)
    last = nn.Sequential(OrderedDict(one=nn.Conv2d(3, 8, 4, 4), other=ChannelsLast()))
    flipped = build_network(last, taps={"c2": "other"}, image_size=32)
    assert flipped.taps["c2"].channels == 8
    assert run(flipped, "c2")["c2"].shape == (2, 8, 8, 8)
    with pytest.raises(DovetailError, match=r"'c3' is 'body.encoder', which returns 3 maps"):
        build_network(Model(), taps={"c3": "body.encoder"}, image_size=32)


def test_logits_are_not_taken_for_the_decoders_map() -> None:
    class Whole(nn.Module):
        """A decoder that ends in the classifier, as those of SegFormer and nnU-Net."""

        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Conv2d(3, 8, 4, 4)
            self.decoder = nn.Sequential(nn.Conv2d(8, 6, 3, 1, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))

        def forward(self, pixels: Tensor) -> Tensor:
            logits: Tensor = self.decoder(self.encoder(pixels))
            return nn.functional.interpolate(logits, scale_factor=4)

    network = build_network(Whole(), encoder="encoder", decoder="decoder", image_size=32)
    assert network.taps["p2"].channels == 6
    assert (run(network, "p2")["p2"] >= 0).all()
    network.prune(["c2", "p2"])
    assert network.unreached == ("decoder.2.weight", "decoder.2.bias")
    # The last 1x1 convolution of a decoder that a classifier follows is part of it.
    assert own().taps["p2"].channels == 5
