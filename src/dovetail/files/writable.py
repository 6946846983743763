"""Whether a folder can be written to."""

from __future__ import annotations

import os
from pathlib import Path

from dovetail.errors import OptionsError, ResourceError


def check_writable(folder: Path) -> None:
    """Raise `DovetailError` where a folder cannot be made or written to, before hours were spent on what goes there."""
    place = next((one for one in (folder, *folder.parents) if one.exists()), folder)
    if not place.is_dir():
        raise OptionsError(f"{place} is a file; name a folder with --out.")
    if not os.access(place, os.W_OK | os.X_OK):
        raise ResourceError(f"Cannot write to {place}; name another folder with --out.")
