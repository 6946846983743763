"""Python objects by their paths, "package.module:name", as a person types them; no path in a file comes here."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

from dovetail.errors import OptionsError, unknown_name

PATH = r"[\w.]+:\w+"


def is_path(text: str) -> bool:
    """Whether a text is the path of a Python object."""
    return re.fullmatch(PATH, text) is not None


def import_path(path: str, what: str) -> Any:
    """Return the object at "package.module:name"; the working folder is searched too.

    Args:
        path: Of the object.
        what: What it is to be, for the sentence where there is none.

    Raises:
        OptionsError: There is no such module or name.
    """
    module, _, name = path.partition(":")
    here = str(Path.cwd())
    sys.path.append(here)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise OptionsError(
            f"There is no module {error.name!r} for the {what} {path}; install it, or start where it is."
        ) from error
    finally:
        sys.path.remove(here)
    if name not in vars(found):
        raise unknown_name(f"{what} in {module}", name, [one for one in vars(found) if not one.startswith("_")])
    return vars(found)[name]
