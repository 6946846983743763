"""Names of methods: how they are taken apart, what options they have, what is said of wrong ones."""

from __future__ import annotations

import inspect

import pytest

from dovetail.errors import DovetailError
from dovetail.recipes.table import METHODS, Composition, build, examples, options_of, parse, with_later_options
from tests.recipes.test_decoder_terms import TAPS


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("slotcon", Composition("slotcon")),
        ("decon-sl", Composition("slotcon", decon="sl")),
        ("decon-ml-densecl", Composition("densecl", decon="ml")),
        ("decon-sl-moco-v2", Composition("moco-v2", decon="sl")),
        ("simclr+decon", Composition("simclr", decon="sl", decoder="slotcon")),
        ("simclr+decon-ml-pixpro", Composition("simclr", decon="ml", decoder="pixpro")),
    ],
)
def test_names_are_composed_by_rule(name: str, expected: Composition) -> None:
    assert parse(name) == expected


@pytest.mark.parametrize(
    ("name", "nearest"), [("slotkon", "slotcon"), ("decon-sl-densecll", "decon-sl-densecl"), ("decon", "decon-")]
)
def test_a_wrong_name_gets_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(DovetailError, match=f"no method '{name}'; did you mean '{nearest}"):
        parse(name)


@pytest.mark.parametrize("name", ["decon-sl+decon-sl", "slotcon+slotcon"])
def test_wrong_compositions_get_a_sentence(name: str) -> None:
    with pytest.raises(DovetailError, match="expected METHOD"):
        parse(name)


def test_a_wrong_option_gets_the_nearest() -> None:
    with pytest.raises(DovetailError, match="option of decon-sl 'alhpa'; did you mean 'alpha'"):
        build("decon-sl", TAPS, {"alhpa": 0.5})


@pytest.mark.parametrize(
    ("name", "option", "others"),
    [
        ("densecl", "prototypes", "slotcon, dino, ibot, …"),
        ("decon-sl", "queries", "adclr-dino, adclr-ibot, adclr"),
    ],
)
def test_an_option_of_other_methods_names_them(name: str, option: str, others: str) -> None:
    with pytest.raises(DovetailError, match=f"{name} has no option '{option}'; it is an option of {others}"):
        build(name, TAPS, {option: 1})


@pytest.mark.parametrize("name", examples())
def test_every_option_has_a_plain_type_and_a_default(name: str) -> None:
    for option, parameter in options_of(name).items():
        assert parameter.default is not inspect.Parameter.empty, option
        assert parameter.annotation is not inspect.Parameter.empty, option
        assert not isinstance(parameter.annotation, str), option


@pytest.mark.parametrize("name", METHODS)
def test_every_method_names_its_paper(name: str) -> None:
    method = METHODS[name]
    assert method.title
    assert 2018 < method.year < 2027
    assert name in __import__(method.module, fromlist=["METHODS"]).METHODS


def test_runs_from_before_an_option_keep_what_they_did() -> None:
    assert with_later_options("dino", {}, resume=True) == {"reference_timm_positions": True}
    assert with_later_options("adclr-ibot", {"queries": 3}, resume=False) == {
        "queries": 3,
        "reference_timm_positions": False,
    }
    given = {"reference_timm_positions": False}
    assert with_later_options("dino", given, resume=True) == given
    assert with_later_options("slotcon", {}, resume=True) == {}
