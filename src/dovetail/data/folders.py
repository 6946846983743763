"""Which files of a folder are images: one walk for every verb."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dovetail.data.reading.decode import SUFFIXES, looks_like_image
from dovetail.errors import DataError, counted

HEAD_BYTES = 16
OF_A_RUN = {"config.yaml", "checkpoints", "metrics.jsonl"}  # which every run's folder has after its first steps


@dataclass(frozen=True)
class Listing:
    """What a folder holds, with everything below it.

    Attributes:
        images: Paths, sorted.
        others: How many other files there are of each suffix.
        num_folders: In it and below.
        num_runs: Folders of pre-training runs below it, which are not entered.
    """

    images: list[str]
    others: Counter[str]
    num_folders: int
    num_runs: int = 0

    def left_out(self) -> str:
        """Return sentences on the files and runs that are not read; nothing where there is none."""
        runs = f"Left out: {counted(self.num_runs, 'folder')} of pre-training runs." if self.num_runs else ""
        return "\n".join(filter(None, [left_out(self.others), runs]))


def left_out(others: Counter[str], num_folders: int = 0) -> str:
    """Return a sentence on files and folders that are not read as images; nothing for none."""
    count = sum(others.values()) + num_folders
    verb = "is" if count == 1 else "are"
    return f"Left out: {inventory(others, num_folders)}, which {verb} not read as images." if count else ""


def list_images(folder: Path) -> Listing:
    """Return the images in `folder` and below; links are followed, loops of them walked once.

    Left out are hidden files, and what lies in the folders of pre-training runs below it: embeddings and pictures that
    are written into a run must not become its data.
    """
    others: Counter[str] = Counter()
    images = []
    num_folders = 0
    runs: list[str] = []
    for entry in _walk(folder, runs):
        if _is_folder(entry):
            num_folders += 1
        elif _is_candidate(entry):
            images.append(entry.path)
        else:
            others[Path(entry.name).suffix.lower()] += 1
    return Listing(sorted(images), others, num_folders, len(runs))


def _walk(folder: Path, runs: list[str]) -> Iterator[os.DirEntry[str]]:
    """Yield every entry below `folder` that is not hidden; each real folder is entered once, and none of `runs`, which
    are noted."""
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
                f"The folder {current!r} cannot be read ({error.strerror}); change its permissions or leave it out."
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
    """Return whether the file is an image by its name or, where the name does not tell, by its content."""
    named = named_as_image(entry.name)
    try:
        if named or not entry.is_file():
            return named and (entry.is_file() or entry.is_symlink())
        with open(entry.path, "rb") as file:  # noqa: PTH123 (a Path would be made for each of millions of files)
            return looks_like_image(file.read(HEAD_BYTES))
    except OSError:
        return named  # a broken link is named as skipped, not forgotten


def named_as_image(name: str) -> bool:
    """Return whether a file is an image by its name."""
    return os.path.splitext(name)[1].lower() in SUFFIXES  # noqa: PTH122 (a Path for each of millions of files)


def inventory(files: Counter[str], num_folders: int) -> str:
    """Return such as "3 .txt files and 2 folders", the most frequent suffixes first."""
    ranked = sorted(files.items(), key=lambda item: (-item[1], item[0]))
    parts = [f"{count} {suffix + ' ' if suffix else ''}file{'s' if count > 1 else ''}" for suffix, count in ranked[:3]]
    rest = sum(count for _, count in ranked[3:])
    if rest:
        parts.append(f"{rest} other file{'s' if rest > 1 else ''}")
    if num_folders:
        parts.append(f"{num_folders} folder{'s' if num_folders > 1 else ''}")
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]])) if parts else "nothing"


def with_slashes(name: str) -> str:
    """Return a path that was written on Windows as one of this system; others as they are."""
    return name.replace("\\", "/")
