"""The list of the recipes' options that the command line reads says what the functions say."""

from __future__ import annotations

from inspect import signature
from typing import Any, Literal, get_type_hints

import pytest

from dovetail.recipes.listed import FILE, INTERNAL, function_at, listed, listing, plain, type_of
from dovetail.recipes.table import places


def test_the_list_is_up_to_date() -> None:
    """`python docs/tables.py` writes it anew."""
    assert FILE.read_text(encoding="utf-8") == listing(places())


def test_listed_options_are_those_of_the_functions() -> None:
    for place in places():
        function = function_at(place)
        kinds = get_type_hints(function)
        own = {name: one for name, one in signature(function).parameters.items() if name not in INTERNAL}
        assert list(listed(place)) == list(own)
        for name, parameter in listed(place).items():
            assert parameter.default == own[name].default
            assert type(parameter.default) is type(own[name].default)
            assert parameter.annotation == kinds[name]


@pytest.mark.parametrize(
    "kind",
    [
        int,
        float,
        bool,
        str,
        int | None,
        Literal["a", "b"],
        tuple[float, float],
        tuple[int, ...],
        float | Literal["all"],
    ],
)
def test_types_come_back_as_they_were(kind: Any) -> None:
    assert type_of(plain(kind)) == kind
