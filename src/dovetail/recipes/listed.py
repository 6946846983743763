"""The options of all recipe functions, without importing them, so that help and errors need no torch.

`options.json` contains names, types, defaults and help texts from the signatures and docstrings of the functions.
`python docs/tables.py` writes it, and a test compares it with the functions.
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import types
from collections.abc import Callable, Mapping
from functools import cache, reduce
from inspect import Parameter
from operator import or_
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dovetail.errors import OptionsError

FILE = Path(__file__).with_name("options.json")
INTERNAL = {"base", "taps", "name", "decoder", "recipe", "named"}
"""Parameters of recipe functions that are not options."""

PLAIN: Mapping[str, Any] = {"int": int, "float": float, "bool": bool, "str": str, "none": types.NoneType}


@cache
def listed(place: str) -> Mapping[str, Parameter]:
    """Return the options of a function (such as "dovetail.recipes.slots:slotcon") with their types and defaults."""
    return {
        name: Parameter(
            name,
            Parameter.KEYWORD_ONLY,
            default=default_of(one["default"]),
            annotation=type_of(one["type"]),
        )
        for name, one in content()[place].items()
    }


def texts(place: str) -> Mapping[str, str]:
    """Return the help text of each option of a function."""
    return {name: one["text"] for name, one in content()[place].items()}


@cache
def content() -> dict[str, dict[str, Any]]:
    """Return the content of the file."""
    found: dict[str, dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))
    return found


def function_at(place: str) -> Callable[..., Any]:
    """Import a recipe function, from its module's `METHODS` or by its name."""
    module, _, name = place.partition(":")
    found = importlib.import_module(module)
    function: Callable[..., Any] = getattr(found, "METHODS", {}).get(name) or getattr(found, name)
    return function


def listing(places: list[str]) -> str:
    """Return the content of the file for these functions, which are imported."""
    return json.dumps({place: described(function_at(place)) for place in places}, indent=1) + "\n"


def parameters_of(function: Callable[..., Any]) -> Mapping[str, Parameter]:
    """Return the options of a function from its signature, with their types resolved.

    Raises:
        OptionsError: If a type hint cannot be resolved.
    """
    try:
        kinds = get_type_hints(function)
    except NameError as error:
        raise OptionsError(
            f"The type hints of {function.__qualname__} cannot be resolved ({error}); import their types."
        ) from error
    return {
        name: parameter.replace(annotation=kinds.get(name, Any))
        for name, parameter in inspect.signature(function).parameters.items()
        if name not in INTERNAL
    }


def described(function: Callable[..., Any]) -> dict[str, Any]:
    """Return a function's options as plain values."""
    said = docstring_helps(function)
    return {
        name: {"type": plain(one.annotation), "default": one.default, "text": said.get(name, "")}
        for name, one in parameters_of(function).items()
    }


def docstring_helps(function: Callable[..., Any]) -> dict[str, str]:
    """Return the description of each parameter in a function's docstring."""
    text = inspect.getdoc(function) or ""
    found = re.findall(r"^    (\w+): (.+(?:\n {6,}.+)*)", text, flags=re.MULTILINE)
    return {name: " ".join(words.split()) for name, words in found}


def plain(annotation: Any) -> Any:
    """Return a type as plain values: a name, or ["literal", …], ["union", …] and ["tuple", …]."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ["literal", *inner]
    if origin in (Union, types.UnionType):
        return ["union", *map(plain, inner)]
    if origin is tuple:
        return ["tuple", *("..." if one is ... else plain(one) for one in inner)]
    return next(name for name, kind in PLAIN.items() if kind is annotation)


def type_of(value: Any) -> Any:
    """Return the type for a value of `plain`."""
    if isinstance(value, str):
        return PLAIN[value]
    kind, *inner = value
    if kind == "literal":
        return Literal[tuple(inner)]
    parts: tuple[Any, ...] = tuple(... if one == "..." else type_of(one) for one in inner)
    return tuple.__class_getitem__(parts) if kind == "tuple" else reduce(or_, parts)


def default_of(value: Any) -> Any:
    """Return a default value, with tuples for the lists of JSON."""
    return tuple(map(default_of, value)) if isinstance(value, list) else value
