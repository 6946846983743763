"""Checks that dataclass fields of a `Literal` type have one of the listed names."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dovetail.errors import unknown_name


def check_names(value: Any) -> None:
    """Raise `OptionsError` if a field of a dataclass, or of a nested one, has a name that its type does not list."""
    if isinstance(value, (list, tuple)):
        for one in value:
            check_names(one)
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return
    for field, kind in types_of(type(value)).items():
        held = getattr(value, field)
        check_name(f"{field} of {type(value).__name__}", held, kind)
        check_names(held)


def check_name(what: str, value: Any, kind: Any) -> None:
    """Raise `OptionsError` if a value (or an element of it) is a string that its type does not list."""
    if isinstance(value, tuple) and get_origin(kind) is tuple:
        for one in value:
            check_name(what, one, get_args(kind)[0])
        return
    listed = names_of(kind)
    if isinstance(value, str) and listed and value not in listed:
        raise unknown_name(what, value, listed)


@functools.cache
def names_of(kind: Any) -> tuple[str, ...]:
    """Return the names that a type lists, or none if it accepts any string."""
    parts = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if any(one in (str, Path, Any) for one in parts):
        return ()
    return tuple(one for part in parts if get_origin(part) is Literal for one in get_args(part) if isinstance(one, str))


def types_of(kind: type) -> Mapping[str, Any]:
    """Return the types of a dataclass's fields, by name; they are evaluated once."""
    return _types_of(kind)


@functools.cache
def _types_of(kind: type) -> Mapping[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}
