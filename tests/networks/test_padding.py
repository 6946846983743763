"""Reflection in decoders: the same as PyTorch's own, in decoders alone, and gone afterwards."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dovetail.networks.build import build_network
from dovetail.networks.decoder_padding import decoder_padded, padding_convolutions
from dovetail.networks.network import Network, decoder_taps
from dovetail.networks.padding import extended, pads_zeros, sides_of
from dovetail.networks.probe import trial_view
from dovetail.schedules import Moment
from tests.tiny import make_views, tiny_learner

SIDE = 128
MODELS = (
    "smp/unet/resnet18",
    "smp/fpn/resnet18",
    "smp/upernet/resnet18",
    "torchvision/maskrcnn_resnet50_fpn",
    "timm/test_resnet+fpn",
    "timm/test_vit+fpn",
)


def outputs(network: Network, taps: list[str], *, side: int = SIDE) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    with torch.no_grad():
        return network(trial_view(network, size_px=side, batch_size=2), taps)


@pytest.mark.parametrize("model", MODELS)
def test_a_decoder_answers_as_if_built_with_reflection_and_afterwards_as_before(model: str) -> None:
    torch.manual_seed(0)
    network = build_network(model, image_size=SIDE).eval()
    taps = [*decoder_taps(network.taps), *(name for name, tap in network.taps.items() if tap.part == "encoder")]
    reflected = copy.deepcopy(network)
    convolutions = padding_convolutions(reflected)
    assert convolutions
    for convolution in convolutions:
        convolution.padding_mode = "reflect"
    before, names = outputs(network, taps), list(network.state_dict())
    with decoder_padded(network, "reflect"):
        within = outputs(network, taps)
        assert list(network.state_dict()) == names
    expected, after = outputs(reflected, taps), outputs(network, taps)
    for tap in taps:
        assert torch.equal(before[tap], after[tap])
        torch.testing.assert_close(within[tap], expected[tap])
        assert torch.equal(before[tap], within[tap]) or network.taps[tap].part == "decoder"
    assert not torch.equal(before[taps[0]], within[taps[0]])
    assert all(type(module) is nn.Conv2d for module in padding_convolutions(network))


def test_the_decoder_is_as_before_when_its_pass_fails() -> None:
    network = build_network("timm/test_resnet+fpn", image_size=64)
    with pytest.raises(RuntimeError, match="on purpose"), decoder_padded(network, "reflect"):
        raise RuntimeError("on purpose")
    assert all(type(module) is nn.Conv2d for module in padding_convolutions(network))


def test_dilated_convolutions_reach_beyond_small_maps() -> None:
    network = build_network("smp/deeplabv3plus/resnet18", image_size=64).eval()
    taps = decoder_taps(network.taps)
    before = outputs(network, taps, side=64)
    with decoder_padded(network, "reflect"):
        within = outputs(network, taps, side=64)
    assert all(before[tap].shape == within[tap].shape for tap in taps)
    assert not torch.equal(before[taps[0]], within[taps[0]])


def test_zeros_change_nothing_within() -> None:
    network = build_network("timm/test_resnet+fpn", image_size=64)
    with decoder_padded(network, "zeros"):
        assert all(type(module) is nn.Conv2d for module in network.modules() if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize(("before", "after"), [(1, 1), (0, 0), (2, 3), (0, 1), (4, 4)])
@pytest.mark.parametrize("dim", [2, 3])
def test_maps_are_mirrored_as_in_pytorch(before: int, after: int, dim: int) -> None:
    maps = torch.randn(2, 3, 5, 5)
    pads = (before, after, 0, 0) if dim == 3 else (0, 0, before, after)
    assert torch.equal(extended(maps, before, after, dim=dim), F.pad(maps, pads, mode="reflect"))


def test_maps_too_small_to_be_mirrored_repeat_their_border() -> None:
    for size, width in ((1, 1), (4, 6)):
        maps = torch.randn(2, 3, size, size)
        assert torch.equal(extended(maps, width, width, dim=2), F.pad(maps, (0, 0, width, width), mode="replicate"))


@pytest.mark.parametrize(
    ("options", "sides", "pads"),
    [
        ({"padding": 1}, [(1, 1), (1, 1)], True),
        ({"padding": (0, 2), "dilation": (1, 2)}, [(0, 0), (2, 2)], True),
        ({"padding": "same", "dilation": (1, 2)}, [(1, 1), (2, 2)], True),
        ({"padding": "valid"}, [(0, 0), (0, 0)], False),
        ({"padding": 1, "padding_mode": "replicate"}, [(1, 1), (1, 1)], False),
    ],
)
def test_sides_of_convolutions(options: dict[str, Any], sides: list[tuple[int, int]], pads: bool) -> None:
    convolution = nn.Conv2d(2, 2, 3, **options)
    assert sides_of(convolution) == sides
    assert pads_zeros(convolution) == pads


def test_a_learner_pads_as_its_recipe_says() -> None:
    losses = {}
    for padding in ("zeros", "reflect"):
        learner = tiny_learner("decon-sl-densecl", decoder_padding=padding)
        views = make_views(learner.recipe.views)
        loss = learner(views, Moment(0, 100, 10))
        losses[padding] = loss.parts
        loss.total.backward()
        assert all(value.grad is not None for value in learner.student.parameters() if value.requires_grad)
        assert padding_convolutions(learner.exported)
    plain = tiny_learner("decon-sl-densecl")
    expected = plain(make_views(plain.recipe.views), Moment(0, 100, 10)).parts
    assert all(torch.equal(losses["zeros"][name], value) for name, value in expected.items())
    assert torch.equal(losses["reflect"]["encoder/loss"], expected["encoder/loss"])
    assert not torch.equal(losses["reflect"]["decoder_p2/loss"], expected["decoder_p2/loss"])
