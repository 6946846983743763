"""The exceptions of Dovetail. Each message is one sentence: what was found, and what to do.

`DovetailError` is the base class: `except dovetail.DovetailError` catches all errors that Dovetail raises on purpose.
The subclasses say what the error is about.

    DovetailError
    ├── DataError             images, labels or shards
    │   └── MissingFilesError missing files
    ├── ModelError            a model that cannot be built, or that does not fit its input or the method
    ├── WeightsError          weight files
    ├── OptionsError          options: missing, unknown, out of range, or conflicting
    ├── RecipeError           terms, heads, objectives and views of a recipe that do not fit together
    ├── RunError              a run that cannot be started in its folder, resumed or continued
    ├── ResourceError         disk space, memory, open files, devices, permissions, packages
    └── Interrupted           a run that was asked to stop
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Self


class DovetailError(Exception):
    """Base class of all errors. The command line prints the message without a traceback and exits with `exit_code`."""

    def __str__(self) -> str:
        """Return the message. The full stop of a quoted message is removed."""
        text = super().__str__().replace(".);", ");").replace(".).", ").")
        return text[:-1] if text.endswith("..") and not text.endswith("...") else text

    @property
    def exit_code(self) -> int:
        """Exit code of the process."""
        return 2


class DataError(DovetailError):
    """Images, labels or shards are missing, unreadable or invalid.

    If the advice of a message names options, `found` is the message without it, for commands that lack these options.
    """

    found = ""

    @classmethod
    def advising(cls, found: str, advice: str, *, joint: str = "; ") -> Self:
        """Return the error with a message of two clauses: what was found, and what to do with which options."""
        error = cls(f"{found}{joint}{advice}")
        error.found = found
        return error


class MissingFilesError(DataError):
    """Files are missing. `faults` has a sentence for each of them."""

    def __init__(self, sentence: str, faults: tuple[str, ...]) -> None:
        super().__init__(sentence)
        self.faults = faults


class ModelError(DovetailError):
    """A model cannot be built, or does not fit its input, its task or the method."""


class WeightsError(DovetailError):
    """Weights cannot be found, read or loaded into a model."""


class OptionsError(DovetailError):
    """An option is missing, unknown, out of range, or conflicts with another option."""


class RecipeError(DovetailError):
    """The terms, heads, objectives and views of a recipe do not fit together, or do not fit the model's taps."""


class RunError(DovetailError):
    """A run cannot be started, resumed, continued or read."""


class ResourceError(DovetailError):
    """The machine lacks disk space, memory, open files, a device, a permission or a package."""


class Interrupted(DovetailError):
    """A run was asked to stop and has saved a checkpoint. `exit_code` is 128 + `signal_number`, as in shells."""

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """Exit code of the process."""
        return 128 + self.signal_number


class StoppedWaiting(Exception):
    """The run was asked to stop while it was waiting for a batch."""


def printable(text: str) -> str:
    """Escape control characters, such as those in hostile file names, so that a text is safe to print."""
    return "".join(letter if letter.isprintable() or letter in "\n\t" else ascii(letter)[1:-1] for letter in text)


def tell(text: object) -> None:
    """Print a text that may contain file names."""
    print(printable(str(text)), flush=True)


def counted(number: int, word: str) -> str:
    """Return a number with its noun, such as "1 file" or "3 files"."""
    return f"{number:,} {word}" if number == 1 else f"{number:,} {word}s"


def unknown_name(
    kind: str, name: str, known: Iterable[str], *, error: type[DovetailError] = OptionsError
) -> DovetailError:
    """Return the `error` for an unknown `name`, with the most similar of the `known` names.

    Names that start with `name` and a hyphen come first, such as "decon-sl" for "decon".

    >>> str(unknown_name("method", "slotkon", ["slotcon", "decon-sl"]))
    "There is no method 'slotkon'; did you mean 'slotcon'?"
    """
    choices = sorted(known)
    longer = [one for one in choices if one.startswith(f"{name}-")]
    close = difflib.get_close_matches(name, longer or choices, n=1, cutoff=0.5)
    if close:
        return error(f"There is no {kind} {name!r}; did you mean {close[0]!r}?")
    listed = ", ".join(choices[:20]) + (", …" if len(choices) > 20 else "")
    return error(f"There is no {kind} {name!r}; choose one of: {listed}.")
