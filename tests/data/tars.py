"""Shards made on the spot."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from tests.data.photos import encoded, smooth


def jpeg(seed: int) -> bytes:
    """Return a small JPEG."""
    return encoded(Image.fromarray(smooth(20, 30, seed=seed)), "JPEG")


def tar_of(path: Path, members: Mapping[str, bytes]) -> Path:
    """Write a tar with these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def shards_of(folder: Path, counts: list[int]) -> Path:
    """Return a folder of shards with so many images, each with a caption beside it; no two are alike."""
    number = 0
    for shard, count in enumerate(counts):
        members: dict[str, bytes] = {}
        for _ in range(count):
            members[f"{number:05}.jpg"], members[f"{number:05}.txt"] = jpeg(number), b"words"
            number += 1
        tar_of(folder / f"photos-{shard:03}.tar", members)
    return folder
