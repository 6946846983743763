"""Opens image data: a path, a URL or a Python object becomes an `ImageSource`."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from dovetail.data.folders import VOLUMES, find_images, is_volume, left_out, named_as_image
from dovetail.data.joined import JoinedSource
from dovetail.data.reading.archives import open_archive
from dovetail.data.shards.names import names_shards
from dovetail.data.sources import ArchiveSource, DatasetSource, ImageSource, PathSource, read_list
from dovetail.data.volumes import VolumeSource, open_volumes
from dovetail.errors import DataError, counted
from dovetail.files.missing import about_missing

_ROOTS = (".zip", ".tar", ".txt", ".parquet")


def open_source(data: str | Path | Sequence[Any] | Dataset[Any] | ImageSource, *, fetch: bool = True) -> ImageSource:
    """Open `data` as an image source.

    Args:
        data: A folder (searched recursively), a .zip or uncompressed .tar of images, a text file with one path per
            line (relative to the file's folder), a folder or a pattern of WebDataset shards (see
            `dovetail.data.shards.names`), a Hugging Face dataset or Parquet files (see `dovetail.data.hugging_face`),
            a sequence of paths of images, folders, archives and lists, a map-style dataset (see
            `dovetail.data.items.image_in` for its items), a `DataLoader` over one, or a sequence of images.
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
    from dovetail.data.hugging_face import NAMED, is_saved, parquet_files

    if isinstance(data, str | Path):
        return str(data).startswith(NAMED) or is_saved(Path(data)) or bool(parquet_files(Path(data)))
    return type(data).__module__.split(".")[0] == "datasets"


def _from_path(path: Path) -> ImageSource:
    if path.is_dir():
        found = find_images(path)
        if found.volumes and found.images:
            raise DataError(
                f"{str(path)!r} contains {counted(len(found.volumes), 'NIfTI volume')} and "
                f"{counted(len(found.images), 'image')}; specify a folder with only one of them."
            )
        if found.volumes:
            others = Counter({suffix: count for suffix, count in found.others.items() if suffix not in VOLUMES})
            return open_volumes(found.volumes, left_out=left_out(others))
        return PathSource(found.images, left_out=found.left_out())
    if path.is_file() and is_volume(path.name):
        return open_volumes([str(path)])
    if path.is_file():
        archive = open_archive(path)
        return PathSource(read_list(path)) if archive is None else ArchiveSource(archive)
    raise DataError(f"Found no folder, archive or list of images at {str(path)!r}; {about_missing(path)}")


def is_root(path: str | Path) -> bool:
    """Return whether a path in a sequence is a folder, an archive or a list of images, and not an image."""
    path = Path(path)
    if named_as_image(path.name):
        return False
    remote = str(path).startswith("hf:") or "://" in str(path)
    return path.suffix.lower() in _ROOTS or is_volume(path.name) or path.is_dir() or remote


def _from_paths(paths: Sequence[str | Path], fetch: bool) -> ImageSource:
    """Open a sequence of paths: images, or folders, archives and lists that are joined.

    Raises:
        DataError: A folder is given twice or lies in another one, or is stored in an order of its own.
    """
    roots = [Path(path) for path in paths if is_root(path)]
    if not roots:
        return PathSource(paths)
    if len(paths) == 1:
        return open_source(paths[0], fetch=fetch)
    if all(is_volume(os.fspath(path)) for path in paths):
        return open_volumes([os.fspath(path) for path in paths])
    check_apart(roots)
    parts: list[ImageSource] = []
    for roots_follow, group in itertools.groupby(paths, is_root):
        together = list(group)
        parts += [open_source(path, fetch=fetch) for path in together] if roots_follow else [PathSource(together)]
    if all(isinstance(part, VolumeSource) for part in parts):
        told = "\n".join(part.left_out for part in parts if part.left_out)
        volumes = [one for part in parts if isinstance(part, VolumeSource) for one in part.volumes]
        return VolumeSource(volumes, left_out=told)
    for part in parts:
        if type(part).order is not ImageSource.order:
            raise DataError(
                f"{part.name(0)!r} is in shards, volumes or a table, which cannot be combined with other images; "
                "specify them alone, or write all images to shards with `dovetail prepare`."
            )
    return JoinedSource(parts)


def check_apart(roots: Sequence[Path]) -> None:
    """Raise `DataError` if a folder is given twice or lies in another one."""
    real = [root.resolve() for root in roots]
    for inner, outer in itertools.permutations(range(len(roots)), 2):
        if real[inner].is_relative_to(real[outer]):
            raise DataError(
                f"{str(roots[inner])!r} is in {str(roots[outer])!r}, so its images would count twice; specify only one "
                "of them."
            )


SOURCES: Mapping[str, SourceKind] = {
    "source": SourceKind(lambda data: isinstance(data, ImageSource), lambda data, fetch: data),
    "shards": SourceKind(lambda data: is_path(data) and names_shards(str(data)), _from_shards),
    "datasets": SourceKind(is_hugging_face, _from_table),
    "path": SourceKind(is_path, lambda data, fetch: _from_path(Path(data))),
    "paths": SourceKind(lambda data: isinstance(data, Sequence) and all(map(is_path, data)), _from_paths),
    "loader": SourceKind(
        lambda data: isinstance(data, DataLoader), lambda data, fetch: open_source(data.dataset, fetch=fetch)
    ),
    "dataset": SourceKind(lambda data: True, lambda data, fetch: DatasetSource(data)),
}
"""All kinds of data that `open_source` supports; the first one whose `takes` returns True opens it."""
