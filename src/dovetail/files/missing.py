"""Paths that do not exist: what was probably meant, or what is there instead."""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Collection
from pathlib import Path
from typing import Any

from dovetail.errors import OptionsError, counted
from dovetail.options import Options, option_infos

MOST_ENTRIES = 10_000  # of a folder, to find a similar name among them
MOST_LISTED = 5
_OTHER = ("://", "{", "\0")  # in URLs and in patterns of shards


def about_missing(path: str | Path, words: Collection[str] = ()) -> str:
    """Return a clause about a path that does not exist: a similar one, or the content of the folder that it is not in.

    A similar one of the `words` that may stand for a path comes first, and a way to random weights if the words name
    trained ones.

    >>> about_missing("/no-such-folder/photos").startswith("/ contains ")
    True
    """
    if str(path) == "random" and "imagenet" in words:
        return "leave the option out to start from random weights."
    for word in difflib.get_close_matches(str(path).lower(), words, n=1, cutoff=0.82):
        return f"did you mean {word!r}?"
    here, name, rest = split_at_missing(Path(path))
    entries = sorted(itertools.islice((one.name for one in here.iterdir() if one.name[:1] != "."), MOST_ENTRIES))
    lowered = {entry.lower(): entry for entry in reversed(entries)}
    for close in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.6):
        meant = here / lowered[close] / rest
        if meant.exists():
            return f"did you mean {str(meant)!r}?"
    if not entries:
        return f"{here.absolute()} is empty."
    left = len(entries) - MOST_LISTED
    more = f" and {counted(left, 'other')}" if left > 0 else ""
    return f"{here.absolute()} contains {', '.join(entries[:MOST_LISTED])}{more}."


def split_at_missing(path: Path) -> tuple[Path, str, Path]:
    """Return the part of a path that is an existing folder, the name that is missing in it, and what follows."""
    here = next((one for one in path.parents if one.is_dir()), Path())
    name, *rest = path.parts[len(here.parts) :]
    return here, name, Path(*rest)


def refuse_missing(options: Options, *, new: bool = False) -> None:
    """Raise `OptionsError` if an option that was specified is the path of a file or folder that does not exist.

    The command line calls it before it imports the module of a command, which takes seconds. For a run that is `new`,
    and not resumed, this includes starting weights that a config file names.
    """
    for name, info in option_infos(type(options)).items():
        value: Any = getattr(options, name)
        if not info.existing or name not in options.named:
            continue
        if info.words and not new and not options.typed(name):  # a resumed run may not need its starting weights
            continue
        for one in value if isinstance(value, list | tuple) else [value]:
            if one not in info.words and is_missing(one):
                option, about = f"--{name.replace('_', '-')}", about_missing(one, info.words)
                raise OptionsError(f"There is no file or folder {str(one)!r} ({option}); {about}")


def is_missing(value: Any) -> bool:
    """Return whether a value is a path, and not a URL or a pattern, of a file or folder that does not exist."""
    if not isinstance(value, str | Path) or not str(value):
        return False
    text = str(value)
    elsewhere = any(sign in text for sign in _OTHER) or text.startswith(("hf:", "pipe:"))
    return not elsewhere and not Path(text).exists()
