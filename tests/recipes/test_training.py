"""The optimiser as an option of every recipe, and rates by part of the model."""

from __future__ import annotations

from typing import Any

import pytest

from dovetail.networks.build import build_network
from dovetail.networks.parts import is_layer_normed
from dovetail.recipes.table import build, examples, options_of, suited_optimiser
from dovetail.recipes.training import DEFAULT_RATES
from dovetail.schedules import Cosine
from dovetail.train.optimisers import build_optimiser, rule_names
from tests.tiny import CNN, VIT, tiny_learner, tiny_model, tiny_options

TAPS = {model: build_network(model, image_size=64).taps for model in (CNN, VIT)}


@pytest.mark.parametrize("optimiser", ["lars", "lamb", "sgd", "adamw"])
@pytest.mark.parametrize("method", examples())
def test_every_recipe_takes_every_optimiser_at_its_rates(method: str, optimiser: str) -> None:
    taps = TAPS[tiny_model(method)]
    published, other = (build(method, taps, tiny_options(method) | one) for one in ({}, {"optimiser": optimiser}))
    if published.optimiser.name == optimiser:
        assert other == published
        return
    rates, spec = DEFAULT_RATES[optimiser], other.optimiser
    assert (spec.name, spec.base_lr, spec.weight_decay) == (optimiser, rates.base_lr, rates.weight_decay)
    assert spec.decay_one_dimensional == rates.decay_one_dimensional
    assert not any(rule.one_dimensional for rule in spec.rules)
    assert spec.warmup_epochs == published.optimiser.warmup_epochs
    assert spec.clip_norm == published.optimiser.clip_norm


def test_the_published_default_changes_nothing() -> None:
    for method in examples():
        assert options_of(method)["optimiser"].default == "published"
        spec = build(method, TAPS[tiny_model(method)], tiny_options(method)).optimiser
        assert spec.encoder_lr_scale == spec.decoder_lr_scale == 1.0


@pytest.mark.parametrize(
    ("method", "given", "expected"),
    [
        ("slotcon", {"base_lr": 0.3, "weight_decay": 0.1}, {"base_lr": 0.3, "weight_decay": 0.1}),
        ("dino", {"weight_decay": 0.1}, {"weight_decay": Cosine(0.1, 0.4)}),
        ("slotcon", {"base_lr": 1.0, "weight_decay": 1e-5}, {"base_lr": 2e-4, "weight_decay": 0.05}),
        ("densecl", {"base_lr": 0.1}, {"base_lr": 0.1, "weight_decay": 0.05}),
    ],
)
def test_what_is_given_counts_more(method: str, given: dict[str, Any], expected: dict[str, Any]) -> None:
    optimiser = "lars" if method == "dino" else "adamw"
    spec = build(method, TAPS[tiny_model(method)], tiny_options(method) | given | {"optimiser": optimiser}).optimiser
    assert {name: getattr(spec, name) for name in expected} == expected


def test_a_rate_of_biases_that_is_given_stays_what_it_is() -> None:
    options = tiny_options("barlow") | {"bias_lr": 1e-5, "optimiser": "adamw"}
    spec = build("barlow", TAPS[CNN], options).optimiser
    (rule,) = [rule for rule in spec.rules if rule.one_dimensional]
    assert rule.lr_scale * spec.base_lr == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("model", "layer_normed"),
    [
        ("timm/test_vit+fpn", True),
        ("timm/test_convnext+fpn", True),
        ("smp/unet/tu-test_convnext", True),
        ("timm/test_resnet+fpn", False),
        ("smp/unet/resnet18", False),
        ("timm/tf_efficientnet_lite0", False),
    ],
)
def test_adamw_is_chosen_where_lars_meets_layer_norm(model: str, layer_normed: bool) -> None:
    network = build_network(model, image_size=64)
    assert is_layer_normed(network) == layer_normed
    for method, lars in {"slotcon": True, "pixpro": True, "byol": True, "densecl": False, "simsiam": False}.items():
        chosen = suited_optimiser(method, network.taps, tiny_options(method), layer_normed=layer_normed)
        assert chosen == ("adamw" if lars and layer_normed else "published")


def test_parts_of_the_model_have_rates_of_their_own() -> None:
    learner = tiny_learner("decon-sl-barlow", encoder_lr_scale=0.1, decoder_lr_scale=3.0)
    named = rule_names(learner)
    optimiser = build_optimiser(named, learner.recipe.optimiser, learner.lr_scale)
    of = {id(value): group["lr_scale"] for group in optimiser.param_groups for value in group["params"]}
    bias = 0.0048 / 0.2
    for name, value in named.items():
        part = 0.1 if name.startswith("network.model.encoder.") else 3.0 if name.startswith("network.") else 1.0
        assert of[id(value)] == pytest.approx(part * (bias if value.ndim == 1 else 1.0)), name
    assert {0.1, 3.0, 1.0} <= set(of.values())
