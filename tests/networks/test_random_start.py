"""Random encoders begin as a method's source has them."""

from __future__ import annotations

import math

import pytest
import torch

from dovetail.networks.build import build_network
from dovetail.networks.random_start import begin_as
from dovetail.recipe import EncoderInit
from dovetail.recipes.table import build
from tests.tiny import tiny_model

RESNETS = ["timm/resnet18", "timm/resnet18+fpn", "smp/unet/resnet18", "smp/unet/tu-resnet18"]
DENSECL = EncoderInit(fan="in", zero_gamma=False)


@pytest.mark.parametrize("name", RESNETS)
@pytest.mark.parametrize("zero", [True, False])
def test_the_last_norms_of_all_blocks_begin_with_zeros_or_ones(name: str, zero: bool) -> None:
    network = build_network(name, image_size=64)
    before = {key: value.clone() for key, value in network.model.state_dict().items()}
    assert begin_as(network, EncoderInit(zero_gamma=zero), seed=0) == 8
    state, prefix = network.model.state_dict(), network.encoder_prefix
    last = {f"{prefix}layer{stage}.{block}.bn2.weight" for stage in range(1, 5) for block in range(2)}
    for key, value in state.items():
        expected = torch.full_like(value, 0.0 if zero else 1.0) if key in last else before[key]
        assert torch.equal(value, expected), key


def test_densecls_convolutions_are_drawn_for_the_fan_in() -> None:
    torch.manual_seed(0)
    network = build_network("timm/resnet50", image_size=64)
    weight = network.model.get_parameter("layer4.0.downsample.0.weight").detach()  # 1024 -> 2048
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / 2048), rel=0.01)  # as timm draws it
    state = torch.get_rng_state()
    begin_as(network, DENSECL, seed=3)
    assert torch.equal(state, torch.get_rng_state())
    assert float(weight.std()) == pytest.approx(math.sqrt(2 / 1024), rel=0.01)
    stem = network.model.get_parameter("conv1.weight").detach()
    assert float(stem.std()) == pytest.approx(math.sqrt(2 / (3 * 49)), rel=0.03)
    again = build_network("timm/resnet50", image_size=64)
    begin_as(again, DENSECL, seed=3)
    assert torch.equal(stem, again.model.get_parameter("conv1.weight"))


def test_dinos_class_token_and_nothing_else_is_drawn_anew() -> None:
    network = build_network("timm/test_vit+fpn", image_size=64)
    before = {key: value.clone() for key, value in network.model.state_dict().items()}
    assert float(before["encoder.cls_token"].abs().max()) < 1e-4
    assert begin_as(network, EncoderInit(fan="in", zero_gamma=False, class_token_std=0.02), seed=0) == 1
    state = network.model.state_dict()
    assert 0.012 < float(state["encoder.cls_token"].std()) < 0.028
    assert [key for key in state if not torch.equal(state[key], before[key])] == ["encoder.cls_token"]


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ("densecl", DENSECL),
        ("decon-ml-densecl", DENSECL),
        ("moco-v2", EncoderInit(zero_gamma=False)),
        ("slotcon", EncoderInit(zero_gamma=True)),
        ("moco-v3", EncoderInit(zero_gamma=True)),
        ("byol", None),
        *(
            (method, EncoderInit(class_token_std=0.02))
            for method in ("dino", "ibot", "selfpatch", "pqcl", "adclr-ibot")
        ),
    ],
)
def test_the_library_begins_unless_the_published_start_is_asked_for(method: str, expected: EncoderInit | None) -> None:
    taps = build_network(tiny_model(method), image_size=64).taps
    assert build(method, taps).encoder_init is None
    assert build(method, taps, {"encoder_init": "published"}).encoder_init == expected
