"""What only the command line or Python may decide, and never a file that is read: a config, or a run's folder.

A config file or a run folder may come from somebody else. Such a file chooses how a run trains, on data that are on
this machine. It does not choose where results go, what is erased, or what is sent and fetched over the network. The
rule goes by where a value came from, and not by what it looks like: names of options travel from the parser to the
place that would act, which asks whether the option was typed.
"""

from __future__ import annotations

from typing import Any

from dovetail.errors import OptionsError
from dovetail.options import Options

TYPED_ONLY = ("out", "overwrite", "resume")


def refuse_decided_in_file(options: Options) -> None:
    """Raise `OptionsError` where a config file decides what only the command line may; it may name the defaults."""
    for name in TYPED_ONLY:
        value = getattr(options, name, None)
        if name in options.from_file and value != options.default_of(name):
            raise OptionsError(
                f"The config file names {name}, which only the command line may decide; remove it from the file and "
                f"add {typed_again(name, value)}."
            )


def refuse_network_in_file(name: str, value: Any, *, typed: bool) -> None:
    """Raise `OptionsError` unless an option that reaches the network was typed; called where the network is reached.

    Args:
        name: Of the option.
        value: Of the option.
        typed: Whether the command line or Python gave the value.
    """
    if not typed:
        shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
        raise OptionsError(
            f"{name} {shown!r} comes from a config file, and a file may not start a network connection; to allow it, "
            f"add {typed_again(name, value)}."
        )


def typed_again(name: str, value: Any) -> str:
    """Return the words that give an option on the command line."""
    option = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return option
    if isinstance(value, list):
        return " ".join([option, *map(str, value)])
    return f"{option} {str(value)!r}"
