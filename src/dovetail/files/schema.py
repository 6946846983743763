"""Whether the content of a file has the fields and kinds that it must have, by jsonargparse's types."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_args

from dovetail.errors import RunError

SHOWN = 200
MAX_LETTERS = 4096


def checked(content: Any, kinds: Mapping[str, Any], where: Path | str, advice: str) -> dict[str, Any]:
    """Return the fields of a file's content, each as its type has it: a list where a tuple is wanted becomes one.

    Args:
        content: Of the file, as JSON gives it.
        kinds: The type of each field that the file may have.
        where: The file, as sentences name it.
        advice: What to do, as sentences end.

    Raises:
        RunError: It holds no fields, a field that is not among them, or one of another kind.
    """
    import jsonargparse

    if not isinstance(content, dict):
        raise RunError(f"{where} holds a {type(content).__name__} and no fields; {advice}.")
    odd = next((str(name) for name in content if name not in kinds), None)
    if odd is not None:
        raise RunError(f"{where} has a field {odd[:SHOWN]!r} that is not known; {advice}.")
    found: dict[str, Any] = {}
    for name, value in content.items():
        if (
            longest_text(value) > MAX_LETTERS
        ):  # jsonargparse reads texts as YAML, and deep nesting in one ends a process
            raise RunError(f"{where} has a text of more than {MAX_LETTERS:,} letters in {name}; {advice}.")
        parser = jsonargparse.ArgumentParser(exit_on_error=False)
        parser.add_argument("--value", type=kinds[name])
        try:
            if value is None and not takes_none(kinds[name]):
                raise ValueError("null")  # which the parser takes for a value that was left out
            found[name] = parser.parse_object({"value": value}).value
        except Exception:  # values of no kind that the parser expects make it raise almost anything
            shown = repr(value)[:SHOWN]
            raise RunError(f"{where} has {name} {shown}, which is of another kind; {advice}.") from None
    return found


def longest_text(value: Any) -> int:
    """Return how many letters the longest text in a plain value has."""
    if isinstance(value, dict):
        return max((longest_text(one) for one in (*value, *value.values())), default=0)
    if isinstance(value, list):
        return max(map(longest_text, value), default=0)
    return len(value) if isinstance(value, str) else 0


def takes_none(kind: Any) -> bool:
    """Whether a type has None among its values."""
    return kind is Any or NoneType in get_args(kind)
