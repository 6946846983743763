"""A YAML file of options, which anyone may have written: read in bounded time and memory, or one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dovetail.errors import OptionsError

MAX_BYTES = 1 << 20
MAX_VALUES = 100_000
MAX_LETTERS = 4096  # of a text: a path has no more


def read_options_file(path: Path) -> Any:
    """Return the content of a YAML file.

    Raises:
        OptionsError: It cannot be read, runs code, is larger than any file of options, or stands for more values than
            it writes down (aliases of aliases), or for itself.
    """
    import yaml

    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
        if len(text) > MAX_BYTES:
            raise OptionsError(f"{path} has more than {MAX_BYTES:,} bytes; give a file of options.")
        content = yaml.safe_load(text.decode("utf-8"))
        number = count_values(content, {}, ())
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise OptionsError(f"The config file {str(path)!r} cannot be read: {reason}.") from None
    if number > MAX_VALUES:
        raise OptionsError(f"{path} stands for more than {MAX_VALUES:,} values; write its options without aliases.")
    return content


def count_values(content: Any, known: dict[int, int], above: tuple[int, ...]) -> int:
    """Return how many values a content stands for when every alias is written out.

    Args:
        content: Of a file.
        known: Counts by identity, so that a value with many aliases is walked once.
        above: Values that this one lies in; it may not be one of them.

    Raises:
        ValueError: It stands for itself, or holds a text that is longer than any option's: the parser of options reads
            texts as YAML, and deep nesting in one would end the process.
    """
    if isinstance(content, str) and len(content) > MAX_LETTERS:
        raise ValueError(f"it holds a text of {len(content):,} letters, more than {MAX_LETTERS:,}")
    if not isinstance(content, dict | list):
        return 1
    if id(content) in above:
        raise ValueError("it holds itself")
    if id(content) not in known:
        inner = [*content.keys(), *content.values()] if isinstance(content, dict) else content
        known[id(content)] = 1 + sum(count_values(one, known, (*above, id(content))) for one in inner)
    return known[id(content)]
