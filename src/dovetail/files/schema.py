"""JSON files that anyone may have written: read in bounded memory, and checked against types by msgspec.

A schema is a `TypedDict` or a dataclass, with ranges as `Annotated[int, msgspec.Meta(ge=1)]`. What fits no schema is
told as the end of a sentence: "has width 'x', which is not a whole number above 0".
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
SHOWN = 100  # letters of a value that a sentence quotes

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
    """Return the content of a JSON file; NaN and infinities count as numbers.

    Args:
        path: The file.
        advice: What to do, as sentences end.
        most_bytes: Of the file.
        raises: What the sentence is about.

    Raises:
        DovetailError: It is larger, no plain file, or no JSON.
        OSError: It cannot be opened.
    """
    if path.exists() and not path.is_file():  # a pipe is not waited for
        raise raises(f"{path} is not a file; {advice}.")
    if path.stat().st_size > most_bytes:
        raise raises(f"{path} has more than {most_bytes:,} bytes; {advice}.")
    try:
        return json.loads(path.read_bytes())  # a mark at its beginning, as some editors put, is no fault
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
    """Return a content as its schema has it: a `TypedDict`'s fields in a dict, or a dataclass.

    Args:
        content: Plain values, as JSON gives them.
        kind: The schema.
        where: The file, as sentences name it.
        advice: What to do, as sentences end.
        closed: Whether other fields than the schema's are refused; they are left out otherwise.
        raises: What the sentence is about.

    Raises:
        DovetailError: The content does not fit.
    """
    odd = next(misfits(content, kind, closed=closed), None)
    if odd is not None:
        raise raises(f"{where} {odd}; {advice}.")
    return msgspec.convert(content, kind)


def parsed(line: str | bytes, kind: type[T]) -> T | None:
    """Return a line of a file of JSON lines by its schema; None for one that does not fit, or was cut short."""
    try:
        return msgspec.convert(json.loads(line), kind)
    except (ValueError, RecursionError):  # of both libraries
        return None


def read_lines(path: Path, kind: type[T]) -> list[T]:
    """Return the lines of a file of JSON lines that fit a schema; none where there is no file."""
    if not path.is_file():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [found for found in (parsed(line, kind) for line in lines) if found is not None]


def misfits(content: Any, kind: Any, *, closed: bool = False) -> Iterator[str]:
    """Yield what is wrong with each field of a content, as "has no width" or "has id 'a', which is not …".

    Args:
        content: Plain values.
        kind: A `TypedDict` or a dataclass.
        closed: Whether other fields are wrong.
    """
    if not isinstance(content, dict):
        yield f"holds {quoted(content)} and not {WORDS['object']}"
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
        yield from (f"has a field {quoted(name)} that is not known" for name in content if name not in known)


def fits(content: Any, kind: Any) -> bool:
    """Whether a content fits a type."""
    return reason_against(content, kind) is None


def reason_against(value: Any, kind: Any) -> str | None:
    """Return why a value does not fit a type, as "which is not a whole number"; None where it does."""
    try:
        msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError) as error:
        if get_origin(kind) is Literal:
            return f"which is not one of {', '.join(map(str, get_args(kind)))}"
        return in_words(str(error))
    return None


def in_words(message: str) -> str:
    """Return msgspec's message on a value as a clause: "which is not a number above 0"."""
    text, _, place = message.partition(" - at ")
    inside = re.sub(r"[`$]", "", place).strip(".")
    inside = f" at {inside}" if inside else ""
    found = re.match(r"Expected `([^`]*)`(?: of length)?(?: ([<>=]+) (\S+?))?(?:,? got .*)?$", text)
    if found is None:
        return f"which does not fit{inside} ({text[:SHOWN]})"
    kinds, sign, bound = found.groups()
    words = " or ".join(WORDS.get(one, one) for one in kinds.split(" | "))
    least = {">=": "of at least", ">": "above", "<=": "of at most", "<": "below"}
    length = " in length" if " of length " in text else ""
    return f"which is not {words}{f' {least[sign]} {bound}{length}' if sign else ''}{inside}"


def fields_of(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Return a schema's types by field, and whether a file must have the field."""
    hints = get_type_hints(kind, include_extras=True)
    if is_dataclass(kind):
        needed = {one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING}
        return {name: (hint, name in needed) for name, hint in hints.items()}
    found = {}
    for name, hint in hints.items():
        mark = get_origin(hint)  # which `__required_keys__` does not know where annotations are text
        required = mark is Required or (mark is not NotRequired and name in kind.__required_keys__)
        found[name] = (get_args(hint)[0] if mark in (Required, NotRequired) else hint, required)
    return found


def quoted(value: Any) -> str:
    """Return a value as a sentence shows it, cut where it is long."""
    try:
        text = repr(value)
    except RecursionError:
        text = f"a deeply nested {type(value).__name__}"
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
