"""Options that several recipes have in common, written once."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, get_type_hints

from dovetail.recipe import Recipe

RecipeFunction = Callable[..., Recipe]


def with_options_of(shared: Callable[..., Any], **defaults: Any) -> Callable[[RecipeFunction], RecipeFunction]:
    """Let a recipe's function have another function's keyword options beside its own.

    Signature, types and docstring become those of a function that names all of them, as the command line, the tables of
    the documentation and `dovetail.recipes.table` read them.

    Args:
        shared: Whose options. The decorated function passes them on to it, as its `**` parameter.
        defaults: In place of those of `shared`.
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
    """Return the lines of a docstring's section "Args" on some parameters."""
    section = (inspect.getdoc(function) or "").partition("Args:\n")[2]
    lines, kept = [], False
    for line in section.splitlines():
        if line.startswith("    ") and not line.startswith("     "):
            kept = line.strip().partition(":")[0] in names
        if kept and line.startswith("    "):
            lines.append(line)
    return "\n".join(lines)
