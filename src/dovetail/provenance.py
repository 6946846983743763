"""Options that only the command line or Python may set, and never a config file or a run folder.

A config file or a run folder may come from somebody else. Such a file may determine how a run trains on local data. It
may not determine where results are written, what is deleted, or what is sent or downloaded over the network. The rule
depends on the source of a value, and not on its content: the names of typed options are passed from the parser to the
code that acts on them.
"""

from __future__ import annotations

from typing import Any

from dovetail.errors import OptionsError
from dovetail.importing import is_path
from dovetail.options import Options

TYPED_ONLY = ("out", "overwrite", "resume")


def refuse_decided_in_file(options: Options) -> None:
    """Raise `OptionsError` if a config file changes an option that is reserved for the command line."""
    for name in TYPED_ONLY:
        value = getattr(options, name, None)
        if name in options.from_file and value != options.default_of(name):
            raise OptionsError(
                f"The config file sets {name}, which is only allowed on the command line; remove it from the file and "
                f"add {typed_again(name, value)}."
            )


def refuse_network_in_file(name: str, value: Any, *, typed: bool) -> None:
    """Raise `OptionsError` unless an option that needs the network was typed. Called before the network is used.

    Args:
        name: Name of the option.
        value: Value of the option.
        typed: Whether the value comes from the command line or from Python.
    """
    if not typed:
        shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        raise OptionsError(
            f"{name} {shown!r} comes from a config file, which may not start network connections; to allow it, add "
            f"{typed_again(name, value)}."
        )


def typed_again(name: str, value: Any) -> str:
    """Return an option with its value as on the command line."""
    option = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return option
    if isinstance(value, list):
        return " ".join([option, *map(str, value)])
    return f"{option} {str(value)!r}"


def refuse_code_in_file(options: Options) -> None:
    """Raise `OptionsError` if a config file names Python code as the model ("package.module:Class")."""
    model = getattr(options, "model", None)
    if isinstance(model, str) and is_path(model) and not options.typed("model"):
        raise OptionsError(f"The model {model} is Python code, which a file may not select; specify it with --model.")
