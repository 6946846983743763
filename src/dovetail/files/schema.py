"""Reads untrusted JSON files with bounded memory, and validates them against types with msgspec.

A schema is a `TypedDict` or a dataclass, with ranges as `Annotated[int, msgspec.Meta(ge=1)]`. A mismatch is described
by the end of a sentence, such as "has width 'x', which is not a whole number above 0".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, NotRequired, Required, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from dovetail.errors import DovetailError, RunError

T = TypeVar("T")

MAX_BYTES = 1 << 26
SHOWN = 100  # characters of a value that a message quotes

WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "names with values",
    "null": "null",
}


def read_json(path: Path, advice: str, *, most_bytes: int = MAX_BYTES, raises: type[DovetailError] = RunError) -> Any:
    """Return the content of a JSON file. NaN and infinities are accepted as numbers.

    Args:
        path: Path of the file.
        advice: What to do: the end of the error message.
        most_bytes: Largest size of the file, in bytes.
        raises: Class of the error.

    Raises:
        DovetailError: The file is too large, not a regular file, or not JSON.
        OSError: The file cannot be opened.
    """
    if path.exists() and not path.is_file():  # opening a pipe would block
        raise raises(f"{path} is not a file; {advice}.")
    if path.stat().st_size > most_bytes:
        raise raises(f"{path} has more than {most_bytes:,} bytes; {advice}.")
    try:
        return json.loads(path.read_bytes())  # accepts the byte order mark that some editors write
    except (ValueError, RecursionError) as error:
        raise raises(f"{path} cannot be read ({error}); {advice}.") from None


def converted(
    content: Any,
    kind: type[T],
    where: Path | str,
    advice: str,
    *,
    closed: bool = False,
    raises: type[DovetailError] = RunError,
) -> T:
    """Validate a content and convert it to its schema: a dict for a `TypedDict`, or a dataclass.

    Args:
        content: Plain values, as parsed from JSON.
        kind: Schema.
        where: Path of the file, for the error message.
        advice: What to do: the end of the error message.
        closed: Whether unknown fields are errors. By default, they are dropped.
        raises: Class of the error.

    Raises:
        DovetailError: The content does not match the schema.
    """
    odd = next(misfits(content, kind, closed=closed), None)
    if odd is not None:
        raise raises(f"{where} {odd}; {advice}.")
    return msgspec.convert(content, kind)


def parsed(line: str | bytes, kind: type[T]) -> T | None:
    """Parse one line of a JSON-lines file. Return None for a line that does not match the schema or is truncated."""
    try:
        return msgspec.convert(json.loads(line), kind)
    except (ValueError, RecursionError):  # from both libraries
        return None


def read_lines(path: Path, kind: type[T]) -> list[T]:
    """Return the lines of a JSON-lines file that match a schema. The result is empty if the file does not exist."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [found for found in (parsed(line, kind) for line in lines) if found is not None]


def misfits(content: Any, kind: Any, *, closed: bool = False) -> Iterator[str]:
    """Yield a description of each mismatch, such as "has no width" or "has id 'a', which is not a number".

    Args:
        content: Plain values.
        kind: A `TypedDict` or a dataclass.
        closed: Whether unknown fields are mismatches.
    """
    if not isinstance(content, dict):
        yield f"contains {quoted(content)} instead of {WORDS['object']}"
        return
    if not closed and fits(content, kind):
        return
    known = fields_of(kind)
    for name, (type_, required) in known.items():
        if name in content:
            reason = reason_against(content[name], type_)
            if reason is not None:
                yield f"has {name} {quoted(content[name])}, {reason}"
        elif required:
            yield f"has no {name}"
    if closed:
        yield from (f"has an unknown field {quoted(name)}" for name in content if name not in known)


def fits(content: Any, kind: Any) -> bool:
    """Return whether a content matches a type."""
    return reason_against(content, kind) is None


def reason_against(value: Any, kind: Any) -> str | None:
    """Return why a value does not match a type, such as "which is not a whole number", or None if it does."""
    try:
        msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        if get_origin(kind) is Literal:
            return f"which is not one of {', '.join(map(str, get_args(kind)))}"
        return in_words(str(error))
    return None


def in_words(message: str) -> str:
    """Convert a message of msgspec to a clause, such as "which is not a number above 0"."""
    text, _, place = message.partition(" - at ")
    inside = re.sub(r"[`$]", "", place).strip(".")
    inside = f" at {inside}" if inside else ""
    found = re.match(r"Expected `([^`]*)`(?: of length)?(?: ([<>=]+) (\S+?))?(?:,? got .*)?$", text)
    if found is None:
        return f"which is invalid{inside} ({text[:SHOWN]})"
    kinds, sign, bound = found.groups()
    words = " or ".join(WORDS.get(one, one) for one in kinds.split(" | "))
    least = {">=": "of at least", ">": "above", "<=": "of at most", "<": "below"}
    length = " in length" if " of length " in text else ""
    return f"which is not {words}{f' {least[sign]} {bound}{length}' if sign else ''}{inside}"


def fields_of(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Return the type of each field of a schema, and whether the field is required."""
    hints = get_type_hints(kind, include_extras=True)
    if is_dataclass(kind):
        needed = {one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING}
        return {name: (hint, name in needed) for name, hint in hints.items()}
    found = {}
    for name, hint in hints.items():
        mark = get_origin(hint)  # `__required_keys__` does not see it if annotations are strings
        required = mark is Required or (mark is not NotRequired and name in kind.__required_keys__)
        found[name] = (get_args(hint)[0] if mark in (Required, NotRequired) else hint, required)
    return found


def quoted(value: Any) -> str:
    """Return the repr of a value for a message, shortened if it is long."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
