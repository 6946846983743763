"""Options that several recipes share."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, get_type_hints

from dovetail.recipe import Recipe

RecipeFunction = Callable[..., Recipe]


def with_options_of(shared: Callable[..., Any], **defaults: Any) -> Callable[[RecipeFunction], RecipeFunction]:
    """Add the keyword options of another function to a recipe function.

    The signature, types and docstring of the result contain all options. The command line, the tables of the
    documentation and `dovetail.recipes.table` read them.

    Args:
        shared: Function whose options are added. The decorated function receives them in its `**` parameter and passes
            them on.
        defaults: Defaults that override those of `shared`.
    """
    parameters = inspect.signature(shared).parameters.values()
    options = [
        one.replace(default=defaults.get(one.name, one.default)) for one in parameters if one.kind is one.KEYWORD_ONLY
    ]

    def decorate(function: RecipeFunction) -> RecipeFunction:
        @wraps(function)
        def recipe(*arguments: Any, **given: Any) -> Recipe:
            return function(*arguments, **(defaults | given))

        signature = inspect.signature(function)
        own = [one for one in signature.parameters.values() if one.kind is not one.VAR_KEYWORD]
        recipe.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
        types = get_type_hints(shared)
        recipe.__annotations__ = get_type_hints(function) | {one.name: types[one.name] for one in options}
        recipe.__doc__ = f"{inspect.getdoc(function)}\n{arguments_text(shared, {one.name for one in options})}"
        return recipe

    return decorate


def arguments_text(function: Callable[..., Any], names: set[str]) -> str:
    """Return the lines of a docstring's `Args` section for the named parameters."""
    section = (inspect.getdoc(function) or "").partition("Args:\n")[2]
    lines, kept = [], False
    for line in section.splitlines():
        if line.startswith("    ") and not line.startswith("     "):
            kept = line.strip().partition(":")[0] in names
        if kept and line.startswith("    "):
            lines.append(line)
    return "\n".join(lines)
