"""Writing images as WebDataset shards: plain tars and a `sizes.json`, the same bytes for the same images."""

from __future__ import annotations

import io
import itertools
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dovetail.data.reading.decode import UnreadableError, looks_like_image
from dovetail.data.shards.names import SIZES
from dovetail.data.sources import ImageSource
from dovetail.errors import DataError, ResourceError, counted

_SUFFIXES = {
    b"\xff\xd8\xff": "jpg",
    b"\x89PNG": "png",
    b"RIFF": "webp",
    b"GIF8": "gif",
    b"BM": "bmp",
    b"\x93NUMPY": "npy",
    b"\0\0\0\x0cjP": "jp2",
    b"\xff\x4f\xff\x51": "j2k",
}
_STEM_LETTERS = 60


@dataclass(frozen=True)
class Written:
    """What was written.

    Attributes:
        folder: Where the shards are.
        sizes: Images by the name of the shard.
        left_out: Names and reasons of images that could not be read.
    """

    folder: Path
    sizes: dict[str, int]
    left_out: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        images, shards = counted(sum(self.sizes.values()), "image"), counted(len(self.sizes), "shard")
        told = f"{images} in {shards}: {self.folder}."
        if self.left_out:
            name, reason = self.left_out[0]
            told += f" {len(self.left_out):,} were left out, such as {name!r}: {reason}."
        return told


def write_shards(
    source: ImageSource,
    folder: Path,
    *,
    images_per_shard: int,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Written:
    """Write the images of a source into shards, in a random order, their bytes as they are.

    Images that lie together (a class, a film) are spread over all shards, as those of a few shards are shuffled
    when they are read. A shard is whole or absent; `sizes.json` comes last.

    Args:
        source: Of images.
        folder: Where to; made if it is missing.
        images_per_shard: Of all shards but the last.
        seed: Of the order.
        progress: Told how many images are done, after each shard.

    Raises:
        DovetailError: No image can be read, or the disk does not take them.
    """
    left_out: list[tuple[str, str]] = []
    order = source.order(seed=seed, epoch=0)
    readable = contents(source, (int(index) for index in order[:]), left_out)
    sizes: dict[str, int] = {}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            name = f"shard-{len(sizes):06d}.tar"
            count = write_shard(folder / name, itertools.islice(readable, images_per_shard))
            if not count:
                break
            sizes[name] = count
            progress(sum(sizes.values()))
        if not sizes:
            raise DataError(f"None of {source.num_images:,} images can be read, such as {left_out[0]}.")
        fresh = folder / f"{SIZES}.tmp"
        fresh.write_text(json.dumps(sizes, indent=0), encoding="utf-8")
        fresh.replace(folder / SIZES)
    except OSError as error:
        raise ResourceError(
            f"The shards cannot be written to {folder} ({error.strerror or error}); make room there."
        ) from error
    return Written(folder, sizes, tuple(left_out))


def contents(
    source: ImageSource, indices: Iterator[int], left_out: list[tuple[str, str]]
) -> Iterator[tuple[str, bytes]]:
    """Yield the names that images get in a shard, and their bytes; note those that cannot be read."""
    for index in indices:
        try:
            source.fetch(index)
            content = source.encoded(index)
            yield f"{index:09d}-{stem(source.name(index))}.{suffix(content)}", content
        except UnreadableError as error:
            left_out.append((source.name(index), str(error)))


def write_shard(path: Path, photographs: Iterator[tuple[str, bytes]]) -> int:
    """Write one shard and return how many images it has; none is written where there are none."""
    fresh, count = path.with_suffix(".tmp"), 0
    try:
        with tarfile.open(fresh, "w", format=tarfile.USTAR_FORMAT) as tar:
            for name, content in photographs:
                info = tarfile.TarInfo(name)  # its time and owner are zero: equal images give equal shards
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
                count += 1
        if count:
            fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return count


def suffix(content: bytes) -> str:
    """Return the suffix that fits an image's content; raise `UnreadableError` where it is none."""
    if re.match(rb"P[1-6]\s", content):  # too short a beginning to tell a file without a name by
        return "ppm"
    if not looks_like_image(content[:16]):
        raise UnreadableError("it is not an image in a supported format")
    if content[4:8] == b"ftyp":
        return "avif"
    return next((found for magic, found in _SUFFIXES.items() if content.startswith(magic)), "tif")


def stem(name: str) -> str:
    """Return an image's own name in letters that every tar and WebDataset take: a dot would end its key."""
    own = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(name).stem)
    return own[:_STEM_LETTERS].strip("_") or "photograph"
