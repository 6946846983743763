"""Opens image data: a path, a URL or a Python object becomes an `ImageSource`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from dovetail.data.reading.archives import open_archive
from dovetail.data.shards.names import names_shards
from dovetail.data.sources import ArchiveSource, DatasetSource, ImageSource, PathSource, find_images, read_list
from dovetail.errors import DataError


def open_source(data: str | Path | Sequence[Any] | Dataset[Any] | ImageSource, *, fetch: bool = True) -> ImageSource:
    """Open `data` as an image source.

    Args:
        data: A folder (searched recursively), a .zip or uncompressed .tar of images, a text file with one path per
            line (relative to the file's folder), a folder or a pattern of WebDataset shards (see
            `dovetail.data.shards.names`), a Hugging Face dataset (see `dovetail.data.hugging_face`), a sequence of
            paths, a map-style dataset or a sequence of images.
        fetch: Whether `data` may be fetched over the network: a URL or "hf:NAME". False if the name was read from a
            file.

    Raises:
        DovetailError: The folder or file does not exist, has no image in it, or may not be fetched.
    """
    if isinstance(data, str) and data.startswith("pipe:"):
        raise DataError(
            f"{data!r} is a command, which is no longer supported; copy the shards to a disk, or specify a URL."
        )
    source = next(kind.open(data, fetch) for kind in SOURCES.values() if kind.takes(data))
    if source.num_images == 0:
        raise DataError(f"The {type(data).__name__} of images is empty; pass at least one image.")
    return source


@dataclass(frozen=True)
class SourceKind:
    """A kind of data.

    Attributes:
        takes: Returns whether data is of this kind.
        open: Opens the data; the second argument is `fetch` of `open_source`.
    """

    takes: Callable[[Any], bool]
    open: Callable[[Any, bool], ImageSource]


def is_path(data: Any) -> bool:
    """Return whether `data` is a path, as a `Path` or a string."""
    return isinstance(data, str | Path)


def _from_shards(data: Any, fetch: bool) -> ImageSource:
    from dovetail.data.shards.source import open_shards  # it imports the sources of this module

    return open_shards(str(data), fetch=fetch)


def _from_table(data: Any, fetch: bool) -> ImageSource:
    from dovetail.data.hugging_face import open_table  # likewise

    return open_table(data, fetch=fetch)


def is_hugging_face(data: Any) -> bool:
    """Return whether `data` is, or names, a Hugging Face dataset. The package need not be installed."""
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
        f"{parent} contains {', '.join(beside)}"
        if beside
        else f"{parent} is {'empty' if parent.is_dir() else 'missing, too'}"
    )
    raise DataError(f"Found no folder, archive or list of images at {str(path)!r}; {there}.")


SOURCES: Mapping[str, SourceKind] = {
    "source": SourceKind(lambda data: isinstance(data, ImageSource), lambda data, fetch: data),
    "shards": SourceKind(lambda data: is_path(data) and names_shards(str(data)), _from_shards),
    "datasets": SourceKind(is_hugging_face, _from_table),
    "path": SourceKind(is_path, lambda data, fetch: _from_path(Path(data))),
    "paths": SourceKind(
        lambda data: isinstance(data, Sequence) and all(map(is_path, data)), lambda data, fetch: PathSource(data)
    ),
    "dataset": SourceKind(lambda data: True, lambda data, fetch: DatasetSource(data)),
}
"""All kinds of data that `open_source` supports; the first one whose `takes` returns True opens it."""
