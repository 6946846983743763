"""The one rule for method, preset, size and length."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import pytest
import timm
import torch
from torch import nn

from dovetail.errors import OptionsError
from dovetail.networks.build import build_network
from dovetail.networks.network import Network
from dovetail.recipes.table import CHOSEN, build
from dovetail.run import choose
from dovetail.run.choose import QUICK_SIDE_PX, QUICK_STEPS, SHORT_STEPS, looks_trained, with_method
from dovetail.run.options import PretrainOptions
from dovetail.run.resolve import Images

CNN, VIT = "timm/test_resnet", "timm/test_vit"


def asked(model: Any = CNN, **values: Any) -> PretrainOptions:
    return PretrainOptions.given({"data": "photos", "model": model, "accelerator": "cpu", **values})


def chosen(options: PretrainOptions, network: Network) -> tuple[PretrainOptions, str]:
    return choose.chosen(options, network, Images(320))  # ten steps in an epoch


@pytest.mark.parametrize(
    ("given", "method", "frozen"),
    [
        ({"model": f"{CNN}+fpn", "init": "imagenet"}, "encoder-targets", "all"),
        ({"model": f"{CNN}+fpn", "init": "imagenet", "freeze_encoder_epochs": 0.0}, "decon-sl", 0.0),
        ({"model": f"{CNN}+fpn", "init": "imagenet", "recipe": {"alpha": 0.5}}, "decon-sl", 0.0),
        ({"model": f"{CNN}+fpn"}, "decon-sl", 0.0),
        ({"model": f"{VIT}+fpn", "init": "imagenet"}, "encoder-targets", "all"),
        ({"model": f"{VIT}+fpn"}, "decon-sl", 0.0),
        ({"model": CNN, "init": "imagenet"}, "densecl", 0.0),
        ({"model": CNN}, "densecl", 0.0),
        ({"model": VIT}, "dino", 0.0),
        ({"model": f"{CNN}+fpn", "init": "imagenet", "method": "slotcon"}, "slotcon", 0.0),
        ({"model": f"{CNN}+fpn", "init": "imagenet", "method": "encoder-targets"}, "encoder-targets", "all"),
        ({"model": f"{CNN}+fpn", "method": "encoder-targets"}, "encoder-targets", 0.0),
    ],
)
def test_method_by_model_and_weights(given: Mapping[str, Any], method: str, frozen: float | str) -> None:
    network = build_network(given["model"])
    found, why = with_method(asked(**given), network)
    assert (found.method, found.freeze_encoder_epochs) == (method, frozen)
    assert why.startswith("Method") is ("method" not in given)
    assert build(method, network.taps).terms  # the method fits the model
    assert "method" in given or method in CHOSEN


def test_continuing_needs_trained_weights() -> None:
    network = build_network(f"{CNN}+fpn")
    with pytest.raises(OptionsError, match="--init"):
        with_method(asked(f"{CNN}+fpn", preset="continue"), network)
    given = asked(f"{CNN}+fpn", preset="continue", init="imagenet", method="decon-sl")
    assert with_method(given, network)[0].freeze_encoder_epochs == "auto"  # half of a length that is not known yet


def test_a_module_that_is_trained_is_told_from_a_random_one() -> None:
    module = nn.Sequential(OrderedDict(encoder=timm.create_model("test_resnet", features_only=True)))
    network = build_network(module, encoder="encoder")
    assert not looks_trained(network)
    with torch.no_grad():
        next(part for part in network.model.modules() if isinstance(part, nn.BatchNorm2d)).weight[0] = 0.5
    assert looks_trained(network)


def test_a_run_on_a_processor_is_short_with_small_views() -> None:
    network = build_network(f"{CNN}+fpn")
    quick, why = chosen(asked(f"{CNN}+fpn"), network)
    assert (quick.preset, quick.max_steps, quick.image_size) == ("short", QUICK_STEPS, QUICK_SIDE_PX)
    assert "no GPU" in why
    for name, value in {"preset": "small", "accelerator": "cuda", "budget": "1h"}.items():
        given = asked(f"{CNN}+fpn", **{name: value})
        found, _ = chosen(given, network)
        kept = ("preset", "max_steps", "epochs", "image_size")
        assert [getattr(found, one) for one in kept] == [getattr(given, one) for one in kept]
    assert chosen(asked(f"{CNN}+fpn", image_size=64), network)[0].image_size == 64
    assert chosen(asked(VIT), build_network(VIT))[0].image_size is None  # its positions are those of one size


@pytest.mark.parametrize(
    ("length", "preset"),
    [
        ({"max_steps": 7}, "short"),
        ({"max_steps": SHORT_STEPS}, "short"),
        ({"max_steps": SHORT_STEPS + 1}, "small"),
        ({"epochs": 3}, "short"),
        ({"epochs": 100}, "short"),
        ({"epochs": 101}, "small"),
        ({"epochs": 101, "max_steps": 9}, "short"),
    ],
)
def test_a_given_length_keeps_the_view_size_and_changes_the_preset_of_long_runs_only(
    length: Mapping[str, Any], preset: str
) -> None:
    network = build_network(f"{CNN}+fpn")
    given = asked(f"{CNN}+fpn", **length)
    found, why = chosen(given, network)
    assert (found.preset, found.image_size) == (preset, QUICK_SIDE_PX)
    assert (found.max_steps, found.epochs) == (given.max_steps, given.epochs)
    assert f"Preset {preset} on views of {QUICK_SIDE_PX} px, because there is no GPU" in why
    assert (f"up to {SHORT_STEPS:,} steps" in why) is (preset == "small")
    assert "override with --preset and --image-size." in why


@pytest.mark.parametrize(
    ("method", "values", "changed"),
    [
        ("dino", {}, {"local_size": 98}),
        ("dino", {"preset": "auto", "epochs": 200}, {"local_size": 98}),
        ("ibot", {"preset": "paper"}, {"local_size": 98}),
        ("pqcl", {"preset": "paper"}, {"local_size": 98, "query_size": 98}),
        ("pqcl", {"preset": "short"}, {"local_size": 98, "query_size": 28}),
        ("dino", {"recipe": {"local_size": 42}}, {}),
        ("slotcon", {}, {}),
    ],
)
def test_views_get_a_multiple_of_the_patch_size(
    method: str, values: Mapping[str, Any], changed: Mapping[str, int]
) -> None:
    model = "timm.create_model('vit_small_patch14_dinov2', depth=1, embed_dim=32, num_heads=2)"
    network = build_network(model, image_size=56)
    options, why = chosen(asked(model, method=method, max_steps=2, **values), network)
    assert options.recipe == ({**values.get("recipe", {}), **changed} or None)
    assert all(f"{name} {size}".lower() in why.lower() for name, size in changed.items())
    assert ("14 px" in why) is bool(changed)
    assert "local_size" not in (chosen(asked(VIT, method="dino", max_steps=2), build_network(VIT))[0].recipe or {})
    build(options.method, network.taps, (options.recipe or {}) | {"image_size": 56})
