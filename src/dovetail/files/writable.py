"""Checks whether a folder is writable, and whether it contains files that a command did not write."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from dovetail.errors import OptionsError, ResourceError


def check_writable(folder: Path) -> None:
    """Raise `DovetailError` if a folder cannot be created or is not writable, before a long computation starts."""
    place = next((one for one in (folder, *folder.parents) if one.exists()), folder)
    if not place.is_dir():
        raise OptionsError(f"{place} is a file; specify a folder with --out.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ResourceError(f"Cannot write to {place}; specify another folder with --out.")


def refuse_others(folder: Path, writer: str, is_own: Callable[[str], bool]) -> None:
    """Raise `OptionsError` if a folder contains a file that a command did not write.

    Args:
        folder: Folder, which may be missing. Files and folders whose names start with a dot are ignored.
        writer: Name of the command.
        is_own: Whether the command wrote the file, by its path relative to the folder, with "/".
    """
    for where, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in sorted(name for name in files if not name.startswith(".")):
            name = (Path(where) / file).relative_to(folder).as_posix()
            if not is_own(name):
                raise OptionsError(
                    f"{folder} contains files that `{writer}` did not write, such as {name!r}; choose another folder "
                    "with --out."
                )
