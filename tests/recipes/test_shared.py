"""Options that recipes share: they read as if each recipe's function named them itself."""

from __future__ import annotations

import inspect
from typing import Any, get_type_hints

import pytest

from dovetail.recipe import Recipe
from dovetail.recipes.listed import docstring_helps
from dovetail.recipes.shared import with_options_of


def common(name: str, *, rate: float = 0.1, side: int = 8) -> Recipe:
    """Stand for what recipes have in common.

    Args:
        name: No option.
        rate: Of learning, in words
            that go on.
        side: In pixels.
    """
    return (name, rate, side)  # type: ignore[return-value]


@with_options_of(common, side=16)
def method(name: str, *, own: bool = False, **rest: Any) -> Recipe:
    """Stand for a recipe.

    Args:
        name: Its name.
        own: An option of its own.
    """
    return common(f"{name} {own}", **rest)


def test_all_options_are_in_the_signature_with_types_and_texts() -> None:
    parameters = inspect.signature(method).parameters
    assert {name: one.default for name, one in parameters.items() if name != "name"} == {
        "own": False,
        "rate": 0.1,
        "side": 16,
    }
    types = get_type_hints(method)
    assert (types["own"], types["rate"], types["side"]) == (bool, float, int)
    assert "rest" not in parameters
    texts = {"name": "Its name.", "own": "An option of its own.", "side": "In pixels."}
    assert docstring_helps(method) == texts | {"rate": "Of learning, in words that go on."}


def test_defaults_and_given_values_reach_the_shared_function() -> None:
    found: Any = [method("a"), method("a", own=True, rate=0.5), method("a", side=4)]
    assert found == [("a False", 0.1, 16), ("a True", 0.5, 16), ("a False", 0.1, 4)]
    plain: Any = common("a")
    assert plain == ("a", 0.1, 8)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="sides"):
        method("a", sides=3)
