"""Reads untrusted YAML option files with bounded time and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dovetail.errors import OptionsError

MAX_BYTES = 1 << 20
MAX_VALUES = 100_000
MAX_LETTERS = 4096  # longest string: paths are not longer


def read_options_file(path: Path) -> Any:
    """Return the content of a YAML file.

    Raises:
        OptionsError: The file cannot be read, contains code, exceeds the limits, or has recursive aliases.
    """
    import yaml

    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise OptionsError(f"{path} has more than {MAX_BYTES:,} bytes; specify an option file.")
        content = yaml.safe_load(text.decode("utf-8"))
        number = count_values(content, {}, ())
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise OptionsError(f"The config file {str(path)!r} cannot be read ({reason}); correct it.") from None
    if number > MAX_VALUES:
        raise OptionsError(f"{path} expands to more than {MAX_VALUES:,} values; write its options without aliases.")
    return content


def count_values(content: Any, known: dict[int, int], above: tuple[int, ...]) -> int:
    """Return the number of values after all aliases are expanded.

    Args:
        content: Content of the file.
        known: Counts by object id, so that a value with many aliases is visited once.
        above: Ids of the enclosing values, to detect recursion.

    Raises:
        ValueError: The content contains itself, or a string is too long. The option parser reads strings as YAML, and
            deep nesting in a long string would crash the process.
    """
    if isinstance(content, str) and len(content) > MAX_LETTERS:
        raise ValueError(f"it contains a string of {len(content):,} characters, more than {MAX_LETTERS:,}")
    if not isinstance(content, dict | list):
        return 1
    if id(content) in above:
        raise ValueError("it contains itself")
    if id(content) not in known:
        inner = [*content.keys(), *content.values()] if isinstance(content, dict) else content
        known[id(content)] = 1 + sum(count_values(one, known, (*above, id(content))) for one in inner)
    return known[id(content)]
