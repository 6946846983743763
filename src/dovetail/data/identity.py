"""Which images a run began with, so that one that goes on elsewhere has the same: `data.json` in its folder."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from dovetail.data.sources import ArchiveSource, ImageSource, PathSource
from dovetail.files.schema import parsed

FILE = "data.json"


class Identity(TypedDict):
    """`images` of a source, and a hash of their `names` below what they share; None where names say nothing."""

    images: int
    names: str | None


def identity_of(source: ImageSource) -> Identity:
    """Return what tells a source's images from others, wherever they lie."""
    from dovetail.data.shards.source import ShardSource  # builds on sources

    names: str | None = None
    if isinstance(source, PathSource | ArchiveSource):
        paths = [source.name(index) for index in range(source.num_images)]
        root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])  # noqa: PTH100, PTH120
        names = hashed(os.path.relpath(path, root) for path in paths)
    elif isinstance(source, ShardSource):
        names = hashed(f"{name.rpartition('/')[2]}:{count}" for name, count in source.sizes.items())
    return {"images": source.num_images, "names": names}


def hashed(names: Iterable[str]) -> str:
    """Return a hash of names in their order."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(os.fsencode(name) + b"\0")
    return digest.hexdigest()[:16]


def read_identity(folder: Path) -> Identity | None:
    """Return what a run's folder says of its images; None where it says nothing, as of older versions."""
    path = folder / FILE
    try:
        return parsed(path.read_bytes(), Identity) if path.is_file() else None
    except OSError:
        return None


def write_identity(folder: Path, identity: Identity) -> None:
    """Write it down in a run's folder."""
    (folder / FILE).write_text(json.dumps(identity) + "\n", encoding="utf-8")


def difference(before: Identity, now: Identity) -> str:
    """Return in words what differs; nothing where the images are the same."""
    if before["images"] != now["images"]:
        return f"there were {before['images']:,} images, and there are {now['images']:,}"
    if None not in (before["names"], now["names"]) and before["names"] != now["names"]:
        return "their names or their order are others"
    return ""
