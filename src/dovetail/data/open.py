"""Opening images: whatever names them becomes a source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from dovetail.data.reading.archives import open_archive
from dovetail.data.shards.names import names_shards
from dovetail.data.sources import ArchiveSource, DatasetSource, ImageSource, PathSource, find_images, read_list
from dovetail.errors import DataError


def open_source(data: str | Path | Sequence[Any] | Dataset[Any] | ImageSource, *, fetch: bool = True) -> ImageSource:
    """Return the photographs that `data` means.

    Args:
        data: A folder (searched with everything below it), a .zip or uncompressed .tar of images, a text file with one
            path a line (relative ones start from the file's folder), a folder or a pattern of WebDataset shards (see
            `dovetail.data.shards.names`), a Hugging Face dataset (see `dovetail.data.hugging_face`), a sequence of
            paths, a map-style dataset or a sequence of images.
        fetch: Whether `data` may name what is fetched over the network: a URL, or "hf:NAME". False for a name that
            was read from a file.

    Raises:
        DovetailError: There is no such folder or file, or no image in it, or it may not be fetched.
    """
    if isinstance(data, str) and data.startswith("pipe:"):
        raise DataError(
            f"{data!r} is a command, and commands are not run any more; copy the shards to a disk, or give a URL."
        )
    if isinstance(data, ImageSource):
        source = data
    elif isinstance(data, str | Path) and names_shards(str(data)):
        from dovetail.data.shards.source import open_shards  # it has sources of its own kind, and builds on these

        source = open_shards(str(data), fetch=fetch)
    elif is_hugging_face(data):
        from dovetail.data.hugging_face import open_table  # likewise

        source = open_table(data, fetch=fetch)
    elif isinstance(data, str | Path):
        source = _from_path(Path(data))
    elif isinstance(data, Sequence) and all(isinstance(item, str | Path) for item in data):
        source = PathSource(data)
    else:
        source = DatasetSource(data)
    if source.num_images == 0:
        raise DataError(f"The {type(data).__name__} of images is empty; give at least one.")
    return source


def is_hugging_face(data: Any) -> bool:
    """Whether `data` is, or names, a Hugging Face dataset; the package need not be installed for that."""
    from dovetail.data.hugging_face import NAMED, is_saved

    if isinstance(data, str | Path):
        return str(data).startswith(NAMED) or is_saved(Path(data))
    return type(data).__module__.split(".")[0] == "datasets"


def _from_path(path: Path) -> ImageSource:
    if path.is_dir():
        found = find_images(path)
        return PathSource(found.images, left_out=found.left_out())
    if path.is_file():
        archive = open_archive(path)
        return PathSource(read_list(path)) if archive is None else ArchiveSource(archive)
    parent = path.absolute().parent
    beside = (
        sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))[:5]
        if parent.is_dir()
        else []
    )
    there = (
        f"{parent} has {', '.join(beside)}"
        if beside
        else f"{parent} is {'empty' if parent.is_dir() else 'missing too'}"
    )
    raise DataError(f"There is no folder, archive or list of images at {str(path)!r}; {there}.")
