"""Which shards there are and how many images each holds, before any is opened.

Shards are named by a folder of `.tar` files, or by a pattern with braces as shells and WebDataset have them:

    shards/                                    a folder; with `sizes.json` nothing has to be counted
    shards/photos-{000000..000147}.tar         files
    https://host/photos-{000..147}.tar         what a tool can fetch: http, https, ftp, s3, gs, hdfs

`sizes.json` is {"name of the shard": number of images, ...} beside the shards, as `dovetail prepare` writes it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta

from dovetail.errors import DataError
from dovetail.files.schema import fits, quoted, read_json

SIZES = "sizes.json"
SCHEMES = ("http", "https", "ftp", "s3", "gs", "hdfs", "file")
MAX_SHARDS = 1_000_000
MAX_SIZES_BYTES = 1 << 30

_BESIDE = (".json", ".txt", ".md", ".idx", ".parquet", ".csv")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)")
_SCHEME = re.compile(r"([a-z][a-z0-9]*)://")


def names_shards(data: str) -> bool:
    """Return whether `data` names shards, not a folder of images or a single archive."""
    if is_pattern(data):
        return True
    folder = Path(data)
    return folder.is_dir() and is_shard_folder(folder)


def is_remote(name: str) -> bool:
    """Return whether a shard's name is a URL, and not a path."""
    return _SCHEME.match(name) is not None


def is_pattern(data: str) -> bool:
    """Return whether `data` names shards by braces or a URL."""
    return is_remote(data) or (data.endswith(".tar") and re.search(r"\{[^{}]*(,|\.\.)[^{}]*\}", data) is not None)


def is_shard_folder(folder: Path) -> bool:
    """Return whether a folder holds shards: tars, and beside them nothing but what describes them."""
    found = False
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 (a folder may have millions of entries)
            if entry.name.startswith("."):
                continue
            if suffix not in (".tar", *_BESIDE) or entry.is_dir():
                return False
            found |= suffix == ".tar"
    return found


def shards_in(folder: Path) -> list[str]:
    """Return the paths of the `.tar` files in a folder, sorted."""
    return sorted(str(entry) for entry in folder.iterdir() if entry.suffix.lower() == ".tar")


def expand(pattern: str) -> list[str]:
    """Return the names that a pattern with braces stands for, in order; `{08..11}` keeps its zeros.

    >>> expand("a-{08..10}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    >>> expand("{a,b{1,2}}.tar")
    ['a.tar', 'b1.tar', 'b2.tar']

    Raises:
        DataError: For a pattern that stands for more shards than any set has.
    """
    names = list(itertools.islice(_expanded(pattern), MAX_SHARDS + 1))
    if len(names) > MAX_SHARDS:
        raise DataError(f"The pattern {pattern!r} stands for more than {MAX_SHARDS:,} shards; check its numbers.")
    return names


def _expanded(text: str) -> Iterator[str]:
    opening = _first_group(text)
    if opening is None:
        yield text
        return
    begin, end = opening
    for choice in _choices(text[begin + 1 : end]):
        for middle in _expanded(choice):
            for rest in _expanded(text[end + 1 :]):
                yield text[:begin] + middle + rest


def _first_group(text: str) -> tuple[int, int] | None:
    """Return the places of the first braces that hold a choice; single ones as in `${HOME}` are left alone."""
    depth, begin = 0, 0
    for place, letter in enumerate(text):
        if letter == "{":
            begin = place if depth == 0 else begin
            depth += 1
        elif letter == "}" and depth:
            depth -= 1
            if depth == 0 and (len(_split(text[begin + 1 : place])) > 1 or _RANGE.fullmatch(text[begin + 1 : place])):
                return begin, place
    return None


def _choices(inner: str) -> Iterator[str]:
    numbers = _RANGE.fullmatch(inner)
    if numbers is None:
        yield from _split(inner)
        return
    first, last = numbers.groups()
    padded = any(len(one.lstrip("-")) > 1 and one.lstrip("-").startswith("0") for one in (first, last))
    width = max(len(first), len(last)) if padded else 0
    step = 1 if int(first) <= int(last) else -1
    for number in range(int(first), int(last) + step, step):
        yield f"{number:0{width}d}"


def _split(inner: str) -> list[str]:
    """Return the parts between commas that are in no braces of their own."""
    parts, depth = [""], 0
    for letter in inner:
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def read_sizes(path: Path) -> dict[str, int]:
    """Return what a `sizes.json` says: images by the name of the shard, of files beside it alone.

    Raises:
        DataError: It is damaged, or names something else.
    """
    advice = "remove it to have the shards counted"
    try:
        content: dict[str, int] = read_json(path, advice, most_bytes=MAX_SIZES_BYTES, raises=DataError)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {advice}.") from None
    if not content or not fits(content, dict[str, Any]):
        raise DataError(f"{path} is not {{shard: number of images}}; {advice}.")
    for name, count in content.items():
        plain = Path(name).name == name and not is_remote(name)
        if not plain or not fits(count, Annotated[int, Meta(ge=0)]):
            raise DataError(
                f"{path} says {quoted(name)}: {quoted(count)}, which is no file beside it and its number of "
                f"images; {advice}."
            )
    return content
