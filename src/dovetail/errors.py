"""The one exception that users are meant to read: a sentence, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DovetailError(ValueError):
    """A mistake in what was asked for. The command line prints it without a traceback and exits with `exit_code`."""

    def __str__(self) -> str:
        """Return the sentence; another one that it quotes at its end, or in brackets, has lost its full stop."""
        text = super().__str__().replace(".);", ");").replace(".).", ").")
        return text[:-1] if text.endswith("..") and not text.endswith("...") else text

    @property
    def exit_code(self) -> int:
        """What the process should exit with."""
        return 2


class StoppedWaiting(Exception):
    """A batch was still being waited for when the run was asked to stop."""


def printable(text: str) -> str:
    """Return a text whose letters a terminal only shows: others, as in hostile names of files, are spelled out."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else ascii(letter)[1:-1] for letter in text)


def tell(text: object) -> None:
    """Print a text that may have names of files in it."""
    print(printable(str(text)), flush=True)


def counted(number: int, word: str) -> str:
    """Return a number of things: "1 file", "3 files"."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def unknown_name(kind: str, name: str, known: Iterable[str]) -> DovetailError:
    """Return the error for a wrong `name`, with the nearest of the `known` ones.

    >>> str(unknown_name("method", "slotkon", ["slotcon", "decon-sl"]))
    "There is no method 'slotkon'; did you mean 'slotcon'?"
    """
    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if close:
        return DovetailError(f"There is no {kind} {name!r}; did you mean {close[0]!r}?")
    listed = ", ".join(choices[:20]) + (", …" if len(choices) > 20 else "")
    return DovetailError(f"There is no {kind} {name!r}; there are: {listed}.")
