"""Keeps the output of `dovetail predict` out of folders with other files, such as images for training.

The files that it writes are listed in a hidden file of their folder, so that it may replace them later.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from dovetail.errors import OptionsError, counted, tell
from dovetail.files.durable import write_whole
from dovetail.files.schema import read_json
from dovetail.files.writable import refuse_others

WRITTEN = ".dovetail-predicted.json"
MOST_BYTES = 1 << 30


@contextmanager
def replacing(folder: Path, names: Collection[Path]) -> Iterator[None]:
    """List the files that the block writes to a folder, and say how many of an earlier `predict` are replaced.

    Args:
        folder: Existing folder.
        names: Paths of the files relative to the folder.

    Raises:
        OptionsError: The folder contains files that no earlier `predict` wrote.
    """
    earlier = written_earlier(folder)
    refuse_others(folder, "predict", earlier.__contains__)
    new = {name.as_posix() for name in names}
    replaced = sum((folder / name).is_file() for name in earlier & new)
    if replaced:
        kept = sum((folder / name).is_file() for name in earlier - new)
        others = f"; {kept:,} of other images stay" if kept else ""
        tell(f"Replacing {counted(replaced, 'file')} of an earlier `predict` in {folder}{others}.")
    note(folder, earlier | new)
    try:
        yield
    finally:
        note(folder, {name for name in earlier | new if (folder / name).is_file()})


def written_earlier(folder: Path) -> set[str]:
    """Return the files that `predict` has written to a folder, as paths relative to it."""
    if not (folder / WRITTEN).is_file():
        return set()
    found = read_json(folder / WRITTEN, "choose another folder with --out", most_bytes=MOST_BYTES, raises=OptionsError)
    return {name for name in found if isinstance(name, str)} if isinstance(found, list) else set()


def note(folder: Path, names: Collection[str]) -> None:
    """Save the list of files, or delete it if there are none."""
    if names:
        write_whole(folder / WRITTEN, json.dumps(sorted(names), indent=0) + "\n")
    else:
        (folder / WRITTEN).unlink(missing_ok=True)
