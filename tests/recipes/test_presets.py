"""Presets name options that methods have, build, and give way to what a user gives."""

from __future__ import annotations

from typing import Any

import pytest

from dovetail.errors import DovetailError
from dovetail.networks.build import build_network
from dovetail.networks.network import Network
from dovetail.recipes import presets
from dovetail.recipes.table import METHODS, build, options_of

COMPOSED = (
    "decon-sl",
    "decon-ml-pixpro",
    "decon-sl-densecl",
    "adclr",
    "adclr-ibot",
    "dino+decon-sl",
    "adclr+decon-sl-densecl",
)
EVERY = (*METHODS, *COMPOSED)
SETS: dict[str, dict[str, Any]] = {
    "small": presets.SMALL,
    "adclr": dict(presets.SHORT_ADCLR),
    "decon": dict(presets.SHORT_DECON),
    "joint": dict(presets.SHORT_JOINT),
    **{name: dict(options) for name, options in presets.SHORT.items()},
}


@pytest.fixture(scope="module")
def networks() -> dict[bool, Network]:
    """A ViT (True) and a CNN, with pyramids."""
    names = {True: "timm.create_model('test_vit', patch_size=8)+fpn(channels=32)", False: "timm/resnet10t+fpn"}
    return {tokens: build_network(name, image_size=64) for tokens, name in names.items()}


@pytest.mark.parametrize("method", EVERY)
@pytest.mark.parametrize("preset", ["small", "short"])
def test_a_preset_builds_every_method(preset: presets.Preset, method: str, networks: dict[bool, Network]) -> None:
    tokens = any(name in method for name in ("dino", "ibot", "selfpatch", "adclr", "pqcl"))
    recipe = build(method, networks[tokens].taps, presets.options(preset, method))
    assert recipe.terms


@pytest.mark.parametrize("name", SETS)
def test_every_option_of_a_preset_is_one_of_some_method(name: str) -> None:
    known = set().union(*(options_of(method) for method in EVERY))
    assert set(SETS[name]) <= known


@pytest.mark.parametrize(
    "method",
    [one for one in EVERY if "momentum" in options_of(one) and one != "encoder-targets"],  # its teacher is still
)
def test_the_teacher_of_a_short_run_leaves_its_start(method: str) -> None:
    """After 480 steps a share of momentum ** 480 of the random start is left, of the published momentum far more."""
    short = presets.options("short", method)["momentum"]
    assert short**480 < 1e-9
    assert short < options_of(method)["momentum"].default


def test_published_settings_stay_as_they_are() -> None:
    assert all(presets.options("paper", method) == {} for method in EVERY)


def test_short_is_never_chosen_by_itself() -> None:
    chosen = {
        presets.choose("auto", num_images=count, accelerator=kind)
        for count in (1, 100, 10**6)
        for kind in ("cpu", "cuda")
    }
    assert chosen == {"small", "paper"}
    assert presets.choose("short", num_images=10**6, accelerator="cuda") == "short"


def test_a_branch_gets_its_part() -> None:
    assert presets.options("short", "adclr")["query_centre_momentum"] == 0.6
    assert presets.options("short", "decon-sl-densecl")["decoder_cells"] == 196
    assert "decoder_cells" not in presets.options("short", "densecl")
    assert "decoder_hidden" not in presets.options("short", "decon-sl-densecl")
    assert presets.options("short", "dino+decon-sl-densecl")["decoder_hidden"] == 64
    with pytest.raises(DovetailError, match="densecl"):
        presets.options("short", "decon-sl-dense")


def test_every_preset_but_the_papers_samples_the_decoders_cells(networks: dict[bool, Network]) -> None:
    taps = networks[False].taps
    for method, region in (
        ("decon-sl", "overlap"),
        ("decon-ml-densecl", "view"),
        ("simclr+decon-sl-pixpro", "overlap"),
    ):
        assert build(method, taps).views.points is None
        for preset in ("small", "short"):
            recipe = build(method, taps, presets.options(preset, method))
            assert recipe.views.points is not None
            assert recipe.views.points.region == region
            assert recipe.views.points.count == (49 if "ml" in method else 196)


def test_a_grid_that_is_given_replaces_sampled_cells() -> None:
    found = presets.options("small", "decon-sl")
    without = {name: value for name, value in found.items() if name != "dim"}
    assert presets.beside(found, {"dim"}, "decon-sl") == without
    assert "decoder_cells" not in presets.beside(found, {"decoder_grid"}, "decon-sl")


def test_a_width_that_is_given_is_that_of_all_heads() -> None:
    found = presets.options("small", "decon-sl")
    assert found["decoder_hidden"] == 512
    assert "decoder_hidden" not in presets.beside(found, {"hidden"}, "decon-sl")
    joint = presets.options("short", "dino+decon-sl")
    assert presets.beside(joint, {"hidden"}, "dino+decon-sl")["decoder_hidden"] == 64


def test_moco_v3_has_other_rates_with_adamw(networks: dict[bool, Network]) -> None:
    for tokens, name, most in ((True, "adamw", 0.01), (False, "lars", 100.0)):
        taps = networks[tokens].taps
        optimiser = build("moco-v3", taps, presets.options("short", "moco-v3", taps)).optimiser
        assert optimiser.name == name
        assert most / 10 < optimiser.base_lr < most


def test_the_predictor_of_simsiam_stays_a_bottleneck() -> None:
    for preset in ("small", "short"):
        found = presets.options(preset, "simsiam")
        assert 4 * found["predictor_hidden"] == found["dim"]


def test_the_teacher_that_a_decoders_method_brings_moves_too() -> None:
    assert presets.options("short", "simclr+decon-sl")["decoder_momentum"] == presets.SHORT["slotcon"]["momentum"]
    assert "decoder_momentum" not in presets.options("short", "byol+decon-sl")
    assert presets.options("short", "dino+decon-sl-simsiam")["decoder_predictor_hidden"] == 8


def test_agreed_options_hold_for_every_model_and_length() -> None:
    agreed, every = presets.agreed_options("short", "moco-v3"), presets.options("short", "moco-v3")
    assert every.keys() - agreed.keys() == {"base_lr", "bias_lr", "warmup_epochs"}
    assert agreed
