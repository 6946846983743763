"""The exceptions that users meet, each with one sentence: what was found, and what to do.

`DovetailError` is the parent of all: `except dovetail.DovetailError` catches whatever Dovetail refuses. The classes
below it say what the sentence is about.

    DovetailError
    ├── DataError             images, labels or shards
    │   └── MissingFilesError files that should be there are not
    ├── ModelError            a model that cannot be built, or that does not fit its input or the method
    ├── WeightsError          files of weights
    ├── OptionsError          options: missing, unknown, out of range, or in conflict with each other
    ├── RecipeError           terms, heads, objectives and views of a recipe that do not fit together
    ├── RunError              a run that cannot begin in its folder, be resumed or go on
    ├── ResourceError         room on a disk, memory, open files, devices, permissions, packages
    └── Interrupted           a run that was asked to stop
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class DovetailError(Exception):
    """Whatever Dovetail refuses. The command line prints it without a traceback and exits with `exit_code`."""

    def __str__(self) -> str:
        """Return the sentence; another one that it quotes at its end, or in brackets, has lost its full stop."""
        text = super().__str__().replace(".);", ");").replace(".).", ").")
        return text[:-1] if text.endswith("..") and not text.endswith("...") else text

    @property
    def exit_code(self) -> int:
        """What the process should exit with."""
        return 2


class DataError(DovetailError):
    """Images, labels or shards are not as they have to be."""


class MissingFilesError(DataError):
    """Files that should be there are not; `faults` has a sentence for each."""

    def __init__(self, sentence: str, faults: tuple[str, ...]) -> None:
        super().__init__(sentence)
        self.faults = faults


class ModelError(DovetailError):
    """A model cannot be built, or does not fit its input, its task or the method."""


class WeightsError(DovetailError):
    """Weights cannot be found, read or loaded into a model."""


class OptionsError(DovetailError):
    """An option is missing, unknown, out of range, or in conflict with another one."""


class RecipeError(DovetailError):
    """The terms, heads, objectives and views of a recipe do not fit together, or not the model's taps."""


class RunError(DovetailError):
    """A run cannot begin in its folder, be resumed, read or go on; or its results cannot be read."""


class ResourceError(DovetailError):
    """The machine lacks something: room on a disk, memory, open files, a device, a permission or a package."""


class Interrupted(DovetailError):
    """A run was asked to stop and has saved itself. `exit_code` is the shell's convention, 128 + `signal_number`."""

    def __init__(self, message: str, *, signal_number: int) -> None:
        super().__init__(message)
        self.signal_number = signal_number

    @property
    def exit_code(self) -> int:
        """What the process should exit with."""
        return 128 + self.signal_number


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


def unknown_name(
    kind: str, name: str, known: Iterable[str], *, error: type[DovetailError] = OptionsError
) -> DovetailError:
    """Return the `error` for a wrong `name`, with the nearest of the `known` ones.

    >>> str(unknown_name("method", "slotkon", ["slotcon", "decon-sl"]))
    "There is no method 'slotkon'; did you mean 'slotcon'?"
    """
    choices = sorted(known)
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    if close:
        return error(f"There is no {kind} {name!r}; did you mean {close[0]!r}?")
    listed = ", ".join(choices[:20]) + (", …" if len(choices) > 20 else "")
    return error(f"There is no {kind} {name!r}; there are: {listed}.")
