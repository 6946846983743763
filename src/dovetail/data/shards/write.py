"""Writes images as WebDataset shards: plain tar files and a `sizes.json`. Equal images give equal bytes."""

from __future__ import annotations

import io
import itertools
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dovetail.data.folders import HEAD_BYTES
from dovetail.data.reading.decode import UnreadableError
from dovetail.data.reading.recognise import is_dicom, looks_like_image
from dovetail.data.shards.names import SIZES
from dovetail.data.sources import ImageSource
from dovetail.data.streams import encoded
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
MOST_UNREADABLE = 1000  # items at the beginning of a stream, which may be endless


@dataclass(frozen=True)
class Written:
    """The shards that were written.

    Attributes:
        folder: Folder of the shards.
        sizes: Number of images by shard name.
        left_out: Names of unreadable images, with the reason.
    """

    folder: Path
    sizes: dict[str, int]
    left_out: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        images, shards = counted(sum(self.sizes.values()), "image"), counted(len(self.sizes), "shard")
        told = f"{images} in {shards}: {self.folder}."
        if self.left_out:
            name, reason = self.left_out[0]
            told += f" Skipped {len(self.left_out):,} unreadable images, such as {name!r}: {reason}."
        return told


def write_shards(
    source: ImageSource,
    folder: Path,
    *,
    images_per_shard: int,
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> Written:
    """Write the images of a source into shards, in random order, without encoding them again.

    The random order spreads neighbouring images (of a class, of a film) over all shards, because reading shuffles only
    a few shards at a time. A shard is written completely or not at all; `sizes.json` is written last.

    Args:
        source: Image source.
        folder: Output folder, which is created if it is missing.
        images_per_shard: Number of images in all shards but the last.
        seed: Seed of the image order.
        progress: Called after each shard with the number of images written so far.

    Raises:
        DovetailError: No image can be read, or the folder is not writable.
    """
    left_out: list[tuple[str, str]] = []
    order = source.order(seed=seed, epoch=0)
    readable = contents(source, (int(index) for index in order[:]), left_out)
    return _write(readable, folder, left_out, images_per_shard=images_per_shard, progress=progress)


def write_stream(
    items: Iterable[Any],
    folder: Path,
    *,
    images_per_shard: int,
    progress: Callable[[int], None] = lambda done: None,
    most: int | None = None,
) -> Written:
    """Write the images of a stream into shards, in its order. See `write_shards` for the arguments.

    Args:
        items: Items of the stream (see `dovetail.data.streams.items_of`).
        folder: Output folder.
        images_per_shard: Number of images in all shards but the last.
        progress: Called after each shard.
        most: Number of images after which the stream is not read any further. Default: it is read to its end.

    Raises:
        DovetailError: No image can be read, such as none of the first items, or the folder is not writable.
    """
    left_out: list[tuple[str, str]] = []

    def readable() -> Iterator[tuple[str, bytes]]:
        for number, item in enumerate(items):
            try:
                content = encoded(item)
                yield f"{number:09d}.{suffix(content)}", content
            except UnreadableError as error:
                left_out.append((f"item {number}", str(error)))
                if number + 1 == len(left_out) == MOST_UNREADABLE:
                    return

    return _write(
        itertools.islice(readable(), most), folder, left_out, images_per_shard=images_per_shard, progress=progress
    )


def _write(
    readable: Iterator[tuple[str, bytes]],
    folder: Path,
    left_out: list[tuple[str, str]],
    *,
    images_per_shard: int,
    progress: Callable[[int], None],
) -> Written:
    """Write members into shards. `left_out` lists the images that `readable` could not read so far."""
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
            if not left_out:
                raise DataError("The stream contains no images; check --data.")
            name, reason = left_out[0]
            raise DataError(f"None of {len(left_out):,} images can be read, such as {name!r} ({reason}); check --data.")
        fresh = folder / f"{SIZES}.tmp"
        fresh.write_text(json.dumps(sizes, indent=0), encoding="utf-8")
        fresh.replace(folder / SIZES)
    except OSError as error:
        raise ResourceError(
            f"The shards cannot be written to {folder} ({error.strerror or error}); free disk space or specify "
            "another folder."
        ) from error
    return Written(folder, sizes, tuple(left_out))


def contents(
    source: ImageSource, indices: Iterator[int], left_out: list[tuple[str, str]]
) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the bytes of each image's member. Unreadable images are appended to `left_out`."""
    for index in indices:
        try:
            source.fetch(index)
            content = source.encoded(index)
            yield f"{index:09d}-{stem(source.name(index))}.{suffix(content)}", content
        except UnreadableError as error:
            left_out.append((source.name(index), str(error)))


def write_shard(path: Path, images: Iterator[tuple[str, bytes]]) -> int:
    """Write one shard and return its number of images. No file is written without images."""
    fresh, count = path.with_suffix(".tmp"), 0
    try:
        with tarfile.open(fresh, "w", format=tarfile.USTAR_FORMAT) as tar:
            for name, content in images:
                info = tarfile.TarInfo(name)  # time and owner are zero, so equal images give equal shards
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
                count += 1
        if count:
            fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return count


def suffix(content: bytes) -> str:
    """Return the suffix of an image's format. Raise `UnreadableError` if the format is unsupported."""
    if re.match(rb"P[1-6]\s", content):  # too short a signature for `looks_like_image`
        return "ppm"
    if not looks_like_image(content[:HEAD_BYTES]):
        raise UnreadableError("it is not an image in a supported format")
    if content[4:8] == b"ftyp":
        return "avif"
    if is_dicom(content):
        return "dcm"
    return next((found for magic, found in _SUFFIXES.items() if content.startswith(magic)), "tif")


def stem(name: str) -> str:
    """Return an image's name in characters that tar and WebDataset support: a dot would end the key."""
    own = re.sub(r"[^A-Za-z0-9_-]+", "_", Path(name).stem)
    return own[:_STEM_LETTERS].strip("_") or "photograph"
