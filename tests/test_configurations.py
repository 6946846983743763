"""Any method with any options on any kind of model either builds or gives one sentence; so do any wishes for a run."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from dovetail.errors import DovetailError
from dovetail.networks.build import build_network
from dovetail.recipe import Recipe, SameHead, Tap
from dovetail.recipes.table import build, options_of
from dovetail.recipes.table import examples as methods
from dovetail.schedules import Moment, value_at
from dovetail.train.defaults import Settings, resolve
from dovetail.train.options import EngineOptions
from tests.tiny import CNN, VIT

MODELS = (CNN, VIT, "timm/test_resnet", "timm/test_vit", "timm/test_convnext+fcn")
NAMES = (
    *methods(),
    *(
        "decon-ml-densecl",
        "moco-v2+decon-sl-pixpro",
        "ibot+decon",
        "adclr-ibot+decon-sl",
        "adclr-simclr",
        "dino+decon-ml",
    ),
    *("byol+decon-ml-slotcon", "decon-sl-dino", "nonsense", "decon-", "+decon", "adclr-"),
)
NUMBERS: dict[type, tuple[Any, ...]] = {
    int: (-1, 0, 1, 2, 3, 7, 16, 48, 64),
    float: (-1.0, 0.0, 0.2, 0.5, 1.0, 2.0, 1e-12, 1e12, math.nan, math.inf),
    bool: (False, True),
    str: ("", "nonsense", "all"),
    types.NoneType: (None,),
}
QUICK = examples(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
THOROUGH = examples(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))


def values(annotation: Any) -> st.SearchStrategy[Any] | None:
    """Return values of a type, sensible and not; None for a type that no command line can give."""
    if annotation in NUMBERS:
        return st.sampled_from(NUMBERS[annotation])
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return st.sampled_from((*inner, "nonsense"))
    if origin in (types.UnionType, typing.Union):
        found = [one for one in map(values, inner) if one is not None]
        return st.one_of(found) if found else None
    if origin is tuple:
        kinds = [one for one in inner if one is not ...]
        parts = [one for one in map(values, kinds) if one is not None]
        return st.tuples(*parts) if len(parts) == len(inner) else None
    return None


@st.composite
def configurations(draw: st.DrawFn) -> tuple[str, dict[str, Any], str]:
    """A method, some of its options, a model."""
    method = draw(st.sampled_from(NAMES))
    options: dict[str, Any] = {}
    try:
        known = options_of(method)
    except DovetailError:
        known = {}
    for name in draw(st.lists(st.sampled_from(sorted(known)), max_size=4, unique=True)) if known else []:
        strategy = values(known[name].annotation)
        if strategy is not None:
            options[name] = draw(strategy)
    if draw(st.integers(0, 19)) == 0:
        options[draw(st.sampled_from(["alhpa", "", "taps", "name"]))] = 1
    return method, options, draw(st.sampled_from(MODELS))


_TAPS: dict[str, dict[str, Tap]] = {}


def taps_of(model: str) -> dict[str, Tap]:
    if model not in _TAPS:
        _TAPS[model] = build_network(model, image_size=64).taps
    return _TAPS[model]


def check_sentence(text: str) -> None:
    assert "\n" not in text
    assert len(text) > 20


def built(configuration: tuple[str, dict[str, Any], str]) -> Recipe | None:
    """Build the recipe, its heads and its objectives, on no device; None where a sentence said why not."""
    method, options, model = configuration
    taps = taps_of(model)
    try:
        recipe = build(method, taps, options)
        recipe.check(taps)
        with torch.device("meta"):
            for term in recipe.terms:
                if not isinstance(term.head, SameHead):
                    term.head.build(taps[term.tap].channels)
                term.objective.build(recipe.head_of(term))
    except DovetailError as error:
        check_sentence(str(error))
        return None
    return recipe


def check(configuration: tuple[str, dict[str, Any], str]) -> None:
    recipe = built(configuration)
    if recipe is not None:
        moment = Moment(3, 100, 10)
        assert recipe.terms
        assert all(isinstance(value_at(term.weight, moment), float) for term in recipe.terms)
        assert recipe.views.views


@given(configurations())
@QUICK
def test_any_configuration_builds_or_gives_a_sentence(configuration: tuple[str, dict[str, Any], str]) -> None:
    check(configuration)


@pytest.mark.slow
@given(configurations())
@THOROUGH
def test_thousands_of_configurations_build_or_give_a_sentence(configuration: tuple[str, dict[str, Any], str]) -> None:
    check(configuration)


def wishes() -> st.SearchStrategy[dict[str, Any]]:
    """Any options of the engine, of the right types."""
    hints = typing.get_type_hints(EngineOptions)
    parts = {name: values(hint) for name, hint in hints.items() if name not in ("accelerator", "devices", "strategy")}
    known = {name: one for name, one in parts.items() if one is not None}
    return st.fixed_dictionaries({}, optional=known)


_RECIPE: list[Recipe] = []


def check_wishes(wish: dict[str, Any], images: int) -> None:
    if not _RECIPE:
        _RECIPE.append(build("slotcon", taps_of(CNN), {}))
    try:
        settings = resolve(_RECIPE[0], EngineOptions(accelerator="cpu", **wish), num_images=images)
    except DovetailError as error:
        check_sentence(str(error))
        return
    assert settings.total_steps >= 1
    assert settings.global_batch <= images
    assert (
        Settings.from_dict(settings.as_dict()) == settings or settings.save_every_minutes != settings.save_every_minutes
    )
    assert settings.table()


@given(wishes(), st.integers(1, 5000))
@QUICK
def test_any_wishes_give_settings_or_a_sentence(wish: dict[str, Any], images: int) -> None:
    check_wishes(wish, images)


@pytest.mark.slow
@given(wishes(), st.integers(1, 5000))
@THOROUGH
def test_thousands_of_wishes_give_settings_or_a_sentence(wish: dict[str, Any], images: int) -> None:
    check_wishes(wish, images)


def test_most_configurations_of_right_values_build() -> None:
    """The law above would hold for a table that refuses everything."""
    plain: list[Callable[[], Any]] = [lambda name=name: built((name, {}, VIT)) for name in ("dino", "ibot", "simclr")]
    assert all(one() is not None for one in plain)
    assert built(("decon-ml", {"image_size": 64}, CNN)) is not None
    assert built(("dino", {}, CNN)) is not None
    assert built(("ibot", {}, CNN)) is None
