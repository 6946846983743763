"""Lists shards and their number of images without opening them.

Shards are specified by a folder of `.tar` files, or by a pattern with braces, as in shells and WebDataset:

    shards/                                    a folder; with `sizes.json`, images need not be counted
    shards/photos-{000000..000147}.tar         files
    https://host/photos-{000..147}.tar         URLs: http, https, ftp, s3, gs, hdfs

`sizes.json` in the folder of the shards is {"name of the shard": number of images, ...}; `dovetail prepare` writes it.
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
    """Return whether `data` specifies shards, and not a folder of images or a single archive."""
    if is_pattern(data):
        return True
    folder = Path(data)
    return folder.is_dir() and is_shard_folder(folder)


def is_remote(name: str) -> bool:
    """Return whether a shard's name is a URL rather than a path."""
    return _SCHEME.match(name) is not None


def is_pattern(data: str) -> bool:
    """Return whether `data` is a pattern with braces or a URL."""
    return is_remote(data) or (data.endswith(".tar") and re.search(r"\{[^{}]*(,|\.\.)[^{}]*\}", data) is not None)


def is_shard_folder(folder: Path) -> bool:
    """Return whether a folder contains tar files and, apart from files that describe them, nothing else."""
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
    """Expand a pattern with braces to the list of names. `{08..11}` keeps its leading zeros.

    >>> expand("a-{08..10}.tar")
    ['a-08.tar', 'a-09.tar', 'a-10.tar']
    >>> expand("{a,b{1,2}}.tar")
    ['a.tar', 'b1.tar', 'b2.tar']

    Raises:
        DataError: The pattern expands to more than `MAX_SHARDS` names.
    """
    names = list(itertools.islice(_expanded(pattern), MAX_SHARDS + 1))
    if len(names) > MAX_SHARDS:
        raise DataError(f"The pattern {pattern!r} expands to more than {MAX_SHARDS:,} shards; check its numbers.")
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
    """Return the positions of the first braces with alternatives. Others, as in `${HOME}`, are skipped."""
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
    """Split at commas that are not inside nested braces."""
    parts, depth = [""], 0
    for letter in inner:
        depth += (letter == "{") - (letter == "}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts


def read_sizes(path: Path) -> dict[str, int]:
    """Return the contents of a `sizes.json`: the number of images by shard name, for files in the same folder.

    Raises:
        DataError: The file is damaged or has other contents.
    """
    advice = "delete it to have the images counted"
    try:
        content: dict[str, int] = read_json(path, advice, most_bytes=MAX_SIZES_BYTES, raises=DataError)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {advice}.") from None
    if not content or not fits(content, dict[str, Any]):
        raise DataError(f"{path} does not contain {{shard: number of images}}; {advice}.")
    for name, count in content.items():
        plain = Path(name).name == name and not is_remote(name)
        if not plain or not fits(count, Annotated[int, Meta(ge=0)]):
            raise DataError(
                f"{path} contains {quoted(name)}: {quoted(count)}, but expected the name of a file in its folder and "
                f"a number of images; {advice}."
            )
    return content
