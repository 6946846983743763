"""Checks of option values against their type and range, for the command line, YAML and Python alike."""

from __future__ import annotations

import math
import types
from inspect import Parameter
from typing import Any, Literal, Union, get_args, get_origin

from dovetail.errors import OptionsError, unknown_name
from dovetail.sizes import Size, as_size

# Options that must be at least 1.
SIZES = frozenset(
    {"hidden", "dim", "prototypes", "patch_prototypes", "bottleneck", "predictor_hidden", "queue", "image_size"}
    | {"local_size", "decoder_grid", "head_channels", "neighbours"}
)


SIDES = frozenset({"image_size", "local_size"})
SHARES = frozenset({"min_scale", "global_scale", "local_scale", "query_scale", "mask_share", "mask_p"})
MOST_COUNT, MOST_SIDE_PX, MOST_BLUR_PX, MOST = 1 << 20, 1 << 14, 1 << 10, 1e9


def most(name: str, annotation: Any) -> float:
    """Return the maximum value of an option, a limit on memory."""
    if name in SHARES or name.endswith(("momentum", "dropout")):
        return 1.0
    if name in SIDES:
        return MOST_SIDE_PX
    if name.endswith("blur_px"):
        return MOST_BLUR_PX
    return MOST_COUNT if annotation is int or int in get_args(annotation) else MOST


def read_value(name: str, parameter: Parameter, value: Any) -> Any:
    """Return a checked value; sizes such as "64x128" are read."""
    if parameter.annotation == Size and value is not None:
        value = as_size(value, name)
    check_value(name, parameter, value)
    return value


def check_value(name: str, parameter: Parameter, value: Any) -> None:
    """Raise `OptionsError` if a value has the wrong type, is negative, not finite, or too large.

    The recipe checks narrower ranges. A list is accepted for a tuple, as in YAML.

    Args:
        name: Name of the option.
        parameter: Parameter of the option, with its type resolved.
        value: Value to check.
    """
    if not _fits(parameter.annotation, value):
        if get_origin(parameter.annotation) is Literal:
            raise unknown_name(name, str(value), map(str, get_args(parameter.annotation)))
        raise OptionsError(f"{name} is {value!r}; it must be {_words(parameter.annotation)}.")
    largest = most(name, parameter.annotation)
    for one in value if isinstance(value, (tuple, list)) else [value]:
        if isinstance(one, (int, float)) and one > largest:
            raise OptionsError(f"{name} is {one:g}; it must be at most {largest:g}.")
    is_size = name.removeprefix("decoder_") in SIZES or name in SIZES
    if (
        is_size and 0 in (value if isinstance(value, tuple | list) else [value]) and parameter.default != 0
    ):  # a default of 0 means none
        raise OptionsError(f"{name} is 0; it must be at least 1.")
    if name.endswith("temperature") and value == 0:
        raise OptionsError(f"{name} is 0; it must be above 0.")


def _fits(annotation: Any, value: Any) -> bool:
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return value in inner
    if origin in (types.UnionType, Union):
        return any(_fits(one, value) for one in inner)
    if origin is tuple and ... not in inner:
        return (
            isinstance(value, (tuple, list))
            and len(value) == len(inner)
            and all(_fits(kind, one) for kind, one in zip(inner, value, strict=True))
        )
    if annotation in (int, float):
        number = isinstance(value, (int, annotation)) and not isinstance(value, bool)
        return number and 0 <= value < math.inf  # NaN fails too
    if annotation in (bool, types.NoneType):
        return isinstance(value, annotation)
    return True


def _words(annotation: Any) -> str:
    """Return a type in words: "a whole number of at least 0 or left out"."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin in (types.UnionType, Union):
        return " or ".join(_words(one) for one in inner)
    if origin is Literal:
        return " or ".join(map(repr, inner))
    if origin is tuple:
        return "(" + ", ".join(_words(one) for one in inner) + ")"
    plain = {int: "a whole number of at least 0", float: "a number of at least 0", bool: "true or false"}
    return plain.get(annotation, "left out" if annotation is types.NoneType else str(annotation))
