"""A pyramid's level at points is its whole map sampled there."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from dovetail.networks.build import build_network
from dovetail.networks.decoder_padding import decoder_padded
from dovetail.networks.decoders import fpn_levels
from dovetail.networks.levels import Level, computable_at_points
from dovetail.networks.network import Network, at_points
from dovetail.recipe import DecoderPadding
from dovetail.views.plan import PointSpec
from dovetail.views.points import places, sample, with_points
from dovetail.views.view import View


def level(norm: type[nn.Module] | None, *, width: int = 7) -> Level:
    torch.manual_seed(0)
    fpn = FeaturePyramidNetwork([4, 5], 8, norm_layer=norm).double()
    maps = [torch.randn(3, 4, 6, width), torch.randn(3, 5, 3, 3)]
    return fpn_levels(fpn, [one.double() for one in maps], levels=[0], drop=lambda laterals: laterals)[0]


def places_of(count: int, seed: int = 0) -> Tensor:
    return torch.rand(3, count, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def all_centres(height: int, width: int) -> Tensor:
    x, y = (torch.arange(width) + 0.5).double() / width, (torch.arange(height) + 0.5).double() / height
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=1).expand(3, -1, -1)


@pytest.mark.parametrize("width", [7, 1])
@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d])
def test_at_points_a_level_is_its_map_sampled(norm: type[nn.Module] | None, width: int) -> None:
    one, where = level(norm, width=width), places_of(20)
    one.block.eval()
    found, expected = one.at(where), sample(one.whole(), where)
    torch.testing.assert_close(found, expected)
    cotangent = torch.randn_like(found)
    parameters = [value for value in one.block.parameters() if value.requires_grad]
    for ours, theirs in zip(
        torch.autograd.grad((found * cotangent).sum(), [one.merged, *parameters], retain_graph=True),
        torch.autograd.grad((expected * cotangent).sum(), [one.merged, *parameters]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


def test_at_all_cell_centres_the_statistics_in_training_are_those_of_the_map() -> None:
    one, other = level(nn.BatchNorm2d), level(nn.BatchNorm2d)
    torch.testing.assert_close(one.at(all_centres(6, 7))[..., 0], other.whole().flatten(2))
    for name, value in other.block.named_buffers():
        torch.testing.assert_close(one.block.get_buffer(name), value, msg=name)


def test_the_statistics_in_training_are_on_average_those_of_the_map() -> None:
    """Not those of bilinear samples, whose variance is smaller: 4 / 9 of it for cells that have nothing in common."""
    one, other = level(nn.BatchNorm2d, width=40), level(nn.BatchNorm2d, width=40)
    one.at(places_of(20_000))
    other.whole()
    torch.testing.assert_close(
        one.block.get_buffer("1.running_var"), other.block.get_buffer("1.running_var"), rtol=0.02, atol=0.0
    )
    samples = sample(other.block.get_submodule("0")(other.merged), places_of(20_000))
    assert (samples.var((0, 2, 3)) < 0.8 * other.block.get_submodule("0")(other.merged).var((0, 2, 3))).all()


def test_looking_at_a_map_moves_no_statistics() -> None:
    one = level(nn.BatchNorm2d)
    before = copy.deepcopy(one.block.state_dict())
    map_ = one.looked_at()
    assert not map_.requires_grad
    assert all(value.equal(before[name]) for name, value in one.block.state_dict().items())
    torch.testing.assert_close(map_, one.whole())


def test_other_blocks_are_not_computed_at_points() -> None:
    fits = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
    assert computable_at_points(fits)
    assert computable_at_points(fits[:1])
    assert not computable_at_points(nn.Sequential(*fits, nn.ReLU()))
    assert not computable_at_points(nn.Sequential(nn.Conv2d(3, 4, 3, padding=2, dilation=2)))
    assert not computable_at_points(nn.Sequential(nn.Conv2d(3, 4, 1)))


def view_of(network: Network) -> View:
    torch.manual_seed(0)
    box = torch.tensor([[0.1, 0.2, 0.8, 0.9], [0.0, 0.3, 0.6, 1.0]])
    view = View(torch.randn(2, 3, 64, 64), box, torch.tensor([False, True]), torch.full((2, 2), 90.0))
    (placed,) = with_points([view], PointSpec(9, "view"), np.random.default_rng(0))
    return placed


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
@pytest.mark.parametrize(
    "model", ["timm/test_resnet+fpn", "timm/test_vit+fpn", "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2"]
)
def test_networks_with_a_pyramid_answer_at_points(model: str, padding: DecoderPadding) -> None:
    network = build_network(model if "/" in model else f"torchvision/{model}", image_size=64).eval()
    view = view_of(network)
    assert set(network.point_taps) == {"p2", "p3", "p4", "p5"}
    with torch.no_grad(), decoder_padded(network, padding):
        whole = network(view, ["p2", "p4"])
        found = network(view, [at_points("p2"), "p4"])
        network.watched = True
        watched = network(view, [at_points("p2"), "p4"])
    assert set(found) == {at_points("p2"), "p4"}
    expected = sample(whole["p2"], places(view))
    torch.testing.assert_close(found[at_points("p2")], expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    torch.testing.assert_close(watched["p2"], whole["p2"])
    assert watched[at_points("p2")].equal(found[at_points("p2")])


def test_other_networks_are_sampled_from_their_maps() -> None:
    assert set(build_network("smp/fpn/resnet18", image_size=64).point_taps) == set()
    assert set(build_network("timm/test_resnet", image_size=64).point_taps) == set()
