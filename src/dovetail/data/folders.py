"""Finds the images in a folder. Every command uses this one walk."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dovetail.data.reading.recognise import FORMATS_READ, SUFFIXES, looks_like_image
from dovetail.errors import DataError, counted

HEAD_BYTES = 132  # with those that mark a DICOM file
VOLUMES = (".nii.gz", ".nii")
HOLDERS = (".tar", ".parquet", ".arrow")  # shards and the files of Hugging Face datasets hold images
OF_A_RUN = {"config.yaml", "checkpoints", "metrics.jsonl"}  # every run folder has these after its first steps


@dataclass(frozen=True)
class Listing:
    """The contents of a folder and its subfolders.

    Attributes:
        images: Sorted paths of the images.
        others: Number of other files by suffix.
        num_folders: Number of subfolders, at any depth.
        num_runs: Number of pre-training run folders, which are not searched.
        volumes: Sorted paths of NIfTI volumes, which are among the `others`, too.
    """

    images: list[str]
    others: Counter[str]
    num_folders: int
    num_runs: int = 0
    volumes: tuple[str, ...] = ()

    def left_out(self) -> str:
        """Return sentences about the files and run folders that are skipped, or an empty string."""
        runs = f"Skipped {counted(self.num_runs, 'folder')} of pre-training runs." if self.num_runs else ""
        return "\n".join(filter(None, [left_out(self.others), runs]))


def left_out(others: Counter[str], num_folders: int = 0) -> str:
    """Return a sentence about files and folders that are skipped, or an empty string."""
    count = sum(others.values()) + num_folders
    return f"Skipped {inventory(others, num_folders)} (not supported as images)." if count else ""


def list_images(folder: Path) -> Listing:
    """Return the images in `folder` and its subfolders. Links are followed, and loops of links are walked once.

    Hidden files are skipped, and so are the folders of pre-training runs: the pictures that are written into a run
    folder must not become training data.
    """
    others: Counter[str] = Counter()
    images = []
    num_folders = 0
    runs: list[str] = []
    volumes: list[str] = []
    for entry in _walk(folder, runs):
        if _is_folder(entry):
            num_folders += 1
        elif _is_candidate(entry):
            images.append(entry.path)
        else:
            others[suffix_of(entry.name)] += 1
            if is_volume(entry.name):
                volumes.append(entry.path)
    return Listing(sorted(images), others, num_folders, len(runs), tuple(sorted(volumes)))


def find_images(folder: Path) -> Listing:
    """Return the images in `folder` and its subfolders (see `list_images`).

    Raises:
        DataError: There is no image; the message lists what was found.
    """
    found = list_images(folder)
    if not found.images and not found.volumes:
        raise DataError(
            f"Found {inventory(found.others, found.num_folders)} but no images in {str(folder)!r}; expected a folder "
            f"of {FORMATS_READ}."
        )
    return found


def refuse_without_images(data: Any) -> None:
    """Raise `DataError` if a folder has neither images nor files that hold them, such as shards.

    Of a folder with images, only the files up to the first one are listed.

    Args:
        data: Images of a command: a path or several. Anything but the path of a folder is left to `open_source`.
    """
    for one in data if isinstance(data, list | tuple) else [data]:
        if isinstance(one, str | Path) and Path(one).is_dir() and not may_have_images(Path(one)):
            find_images(Path(one))


def may_have_images(folder: Path) -> bool:
    """Return whether there is an image, a volume, or a file that may hold images in a folder or its subfolders."""
    entries = (entry for entry in _walk(folder, []) if not _is_folder(entry))
    return any(
        _is_candidate(entry) or is_volume(entry.name) or entry.name.lower().endswith(HOLDERS) for entry in entries
    )


def is_volume(name: str) -> bool:
    """Return whether a file has the suffix of a NIfTI volume, whose slices are images."""
    return name.lower().endswith(VOLUMES)


def suffix_of(name: str) -> str:
    """Return the suffix of a file's name in lower case. That of a compressed volume has two parts."""
    return next((suffix for suffix in VOLUMES if name.lower().endswith(suffix)), Path(name).suffix.lower())


def _walk(folder: Path, runs: list[str]) -> Iterator[os.DirEntry[str]]:
    """Yield every entry below `folder` that is not hidden.

    Each real folder is entered once. Run folders are not entered; their paths are appended to `runs`.
    """
    root = os.fspath(folder)
    waiting, seen = [root], set()
    while waiting:
        current = waiting.pop()
        status = os.stat(current)  # noqa: PTH116 (a Path for each of many folders)
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        try:
            entries = sorted(os.scandir(current), key=lambda entry: entry.name, reverse=True)
        except OSError as error:
            raise DataError(
                f"The folder {current!r} cannot be read ({error.strerror}); change its permissions or move it away."
            ) from error
        if current != root and {entry.name for entry in entries} >= OF_A_RUN:
            runs.append(current)
            continue
        for entry in entries:
            if not entry.name.startswith("."):
                yield entry
                if _is_folder(entry):
                    waiting.append(entry.path)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_candidate(entry: os.DirEntry[str]) -> bool:
    """Return whether the file looks like an image, judged by its name first and by its content otherwise."""
    named = named_as_image(entry.name)
    try:
        if named or not entry.is_file():
            return named and (entry.is_file() or entry.is_symlink())
        with open(entry.path, "rb") as file:  # noqa: PTH123 (a Path would be made for each of millions of files)
            return looks_like_image(file.read(HEAD_BYTES))
    except OSError:
        return named  # a broken link is reported as skipped


def named_as_image(name: str) -> bool:
    """Return whether a file has the suffix of an image format."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 (a Path for each of millions of files)


def inventory(files: Counter[str], num_folders: int) -> str:
    """Return a count such as "3 .txt files and 2 folders", with the most frequent suffixes first."""
    ranked = sorted(files.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{count} {suffix + ' ' if suffix else ''}file{'s' if count > 1 else ''}" for suffix, count in ranked[:3]]
    rest = sum(count for _, count in ranked[3:])
    if rest:
        parts.append(f"{rest} other file{'s' if rest > 1 else ''}")
    if num_folders:
        parts.append(f"{num_folders} folder{'s' if num_folders > 1 else ''}")
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]])) if parts else "nothing"


def with_slashes(name: str) -> str:
    """Return a path with forward slashes, also if it was written on Windows."""
    return name.replace("\\", "/")
