"""Imports Python objects by path ("package.module:name"). Paths come from the user, never from a file."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from dovetail.errors import OptionsError, unknown_name

PATH = r"[\w.]+:\w+"


def is_path(text: str) -> bool:
    """Return whether a string is the path of a Python object."""
    return re.fullmatch(PATH, text) is not None


def import_path(path: str, what: str) -> Any:
    """Return the object at "package.module:name". The working folder is searched, too.

    Args:
        path: Path of the object.
        what: What the object is, for the error message.

    Raises:
        OptionsError: The module or the name does not exist.
    """
    module, _, name = path.partition(":")
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise OptionsError(
            f"There is no module {error.name!r} for the {what} {path}; install it, or run the command in its folder."
        ) from error
    finally:
        sys.path.remove(here)
    if name not in vars(found):
        raise unknown_name(f"{what} in {module}", name, [one for one in vars(found) if not one.startswith("_")])
    return vars(found)[name]
