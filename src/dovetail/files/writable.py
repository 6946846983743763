"""Checks whether a folder is writable."""

from __future__ import annotations

import os
from pathlib import Path

from dovetail.errors import OptionsError, ResourceError


def check_writable(folder: Path) -> None:
    """Raise `DovetailError` if a folder cannot be created or is not writable, before a long computation starts."""
    place = next((one for one in (folder, *folder.parents) if one.exists()), folder)
    if not place.is_dir():
        raise OptionsError(f"{place} is a file; specify a folder with --out.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ResourceError(f"Cannot write to {place}; specify another folder with --out.")
