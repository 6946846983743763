"""Records which images a run started with (`data.json` in the run folder), to check them when it is resumed."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

from dovetail.data.joined import JoinedSource
from dovetail.data.sources import ArchiveSource, ImageSource, PathSource
from dovetail.data.volumes import VolumeSource
from dovetail.files.schema import parsed

FILE = "data.json"


class Identity(TypedDict):
    """Number of `images`, and a hash of their `names` relative to the common folder (None without file names)."""

    images: int
    names: str | None


def identity_of(source: ImageSource) -> Identity:
    """Return the identity of a source's images, which does not depend on the folder they are in."""
    from dovetail.data.shards.source import ShardSource  # builds on sources

    names: str | None = None
    if isinstance(source, JoinedSource):  # each part may have moved by itself
        parts = [identity_of(part) for part in source.parts]
        if all(part["names"] is not None for part in parts):
            names = hashed(f"{part['names']}:{part['images']}" for part in parts)
    elif isinstance(source, PathSource | ArchiveSource):
        paths = [source.name(index) for index in range(source.num_images)]
        root = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])  # noqa: PTH100, PTH120
        names = hashed(os.path.relpath(path, root) for path in paths)
    elif isinstance(source, VolumeSource):
        names = hashed(f"{os.path.basename(one.path)}:{one.num_slices}" for one in source.volumes)  # noqa: PTH119
    elif isinstance(source, ShardSource):
        names = hashed(f"{name.rpartition('/')[2]}:{count}" for name, count in source.sizes.items())
    return {"images": source.num_images, "names": names}


def hashed(names: Iterable[str]) -> str:
    """Return a hash of the names, in order."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(os.fsencode(name) + b"\0")
    return digest.hexdigest()[:16]


def read_identity(folder: Path) -> Identity | None:
    """Return the identity saved in a run folder, or None (older versions saved none)."""
    path = folder / FILE
    try:
        return parsed(path.read_bytes(), Identity) if path.is_file() else None
    except OSError:
        return None


def write_identity(folder: Path, identity: Identity) -> None:
    """Save the identity in a run folder."""
    (folder / FILE).write_text(json.dumps(identity) + "\n", encoding="utf-8")


def difference(before: Identity, now: Identity) -> str:
    """Return a description of the difference, or an empty string if the images are the same."""
    if before["images"] != now["images"]:
        return f"expected {before['images']:,} images, got {now['images']:,}"
    if None not in (before["names"], now["names"]) and before["names"] != now["names"]:
        return "their names or their order changed"
    return ""
