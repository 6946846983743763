"""Images in WebDataset shards: local or remote tar files of some thousand images each.

Memory holds one number per shard, and a table of offsets for each of the few shards that are being read: 10^8 images in
10^4 shards take no more memory than 10^3 images in one.

A member of a shard is an image if the part of its name after the first dot is an image suffix ("0001.jpg", but not
"0001.mask.png" or "0001.json"). The first of several images with the same key is used. All other members are skipped.
"""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dovetail.data.folders import named_as_image
from dovetail.data.order import Order, ShardOrder
from dovetail.data.reading.archives import Member, TarArchive, open_archive
from dovetail.data.reading.decode import LazyImage, UnreadableError, open_bytes
from dovetail.data.reading.recognise import SUFFIXES
from dovetail.data.shards.fetch import ShardCache, check_cache, check_fetchable, local_path
from dovetail.data.shards.names import SIZES, expand, read_sizes, shards_in
from dovetail.data.sources import ImageSource
from dovetail.errors import DataError, DovetailError
from dovetail.errors import counted as words
from dovetail.provenance import refuse_network_in_file

WINDOW_IMAGES = 20_000
FEWEST_OPEN, MOST_OPEN = 8, 512

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Table:
    """The index of one shard.

    Attributes:
        archive: The tar file.
        members: Its images.
        stamp: Identifies the version of the file.
        dotted: Names of images that are skipped because they contain a dot: WebDataset ends a key at the first dot.
    """

    archive: TarArchive
    members: list[Member]
    stamp: tuple[int, int]
    dotted: tuple[str, ...] = ()


class ShardSource(ImageSource):
    """Images of many shards, indexed shard after shard.

    The position of an image is computed from the sizes. Each process lists a shard when it first needs it.
    """

    def __init__(
        self,
        names: Sequence[str],
        counts: Sequence[int] | np.ndarray,
        *,
        cache: Path | None = None,
        window_images: int = WINDOW_IMAGES,
        left_out: str = "",
    ) -> None:
        """Create the source without opening any shard.

        Args:
            names: Paths or URLs of the shards.
            counts: Number of images in each shard.
            cache: Cache folder for remote shards. Default: `default_cache()`.
            window_images: Approximate number of images that are shuffled together.
            left_out: A sentence about images that are skipped.
        """
        self.left_out = left_out
        self._names = list(names)
        self._counts = np.asarray(counts, dtype=np.int64)
        self._ends = np.cumsum(self._counts)
        self._window_images = window_images
        mean = max(int(self._counts.mean()), 1) if len(self._counts) else 1
        # The shards of a window and of the next one, so that each shard is listed and downloaded once per epoch.
        self._most_open = min(max(2 * (window_images // mean + 1), FEWEST_OPEN), MOST_OPEN)
        self._cache = ShardCache(cache or default_cache(), keep=self._most_open)
        self._tables: OrderedDict[int, Table] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_tables": OrderedDict()}  # each worker lists the shards that it reads

    @property
    def num_images(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def sizes(self) -> dict[str, int]:
        """Number of images by shard name."""
        return dict(zip(self._names, self._counts.tolist(), strict=True))

    def place(self, index: int) -> tuple[int, int]:
        """Return the index of an image's shard, and the image's index within the shard."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - int(self._ends[shard] - self._counts[shard])

    def name(self, index: int) -> str:
        shard, within = self.place(index)
        return f"{self._names[shard]}#{within}"

    def order(self, *, seed: int, epoch: int) -> Order:
        return ShardOrder(self._counts, seed=seed, epoch=epoch, window_images=self._window_images)

    def fetch(self, index: int) -> None:
        self._table(self.place(index)[0])

    def open(self, index: int, channels: int) -> LazyImage:
        return open_bytes(self.encoded(index), channels)

    def encoded(self, index: int) -> bytes:
        shard, within = self.place(index)
        table = self._table(shard)
        if within >= len(table.members):
            raise UnreadableError(f"expected {self._counts[shard]:,} images in its shard, got {len(table.members):,}")
        member = table.members[within]
        try:
            return table.archive.read(member)
        except UnreadableError as error:
            raise UnreadableError(f"{member.name}: {error}") from error

    def _table(self, shard: int) -> Table:
        """Return the table of a shard, and download and list it first if needed."""
        known, here = self._tables.get(shard), local_path(self._names[shard])
        path = self._cache.path(self._names[shard]) if here is None else here
        # Another process may have removed the shard from the cache; a new download is another file.
        if known is None or (here is None and known.stamp != stamp_of(path)):
            known = list_shard(path)
            self._tables[shard] = known
            if len(self._tables) > self._most_open:
                self._tables.popitem(last=False)
        self._tables.move_to_end(shard)
        return known


def default_cache() -> Path:
    """Return the cache folder for remote shards, below $DOVETAIL_CACHE or the user's cache folder."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dovetail"
    return Path(os.environ.get("DOVETAIL_CACHE") or user) / "shards"


def stamp_of(path: Path) -> tuple[int, int]:
    """Return a stamp that identifies this version of a file."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def list_shard(path: Path) -> Table:
    """Return the table of a local shard. Raise `UnreadableError` if the file is not a shard."""
    try:
        archive = open_archive(path)
        if not isinstance(archive, TarArchive):
            raise UnreadableError("its shard is not a tar file")
        return table_of(archive, stamp_of(path))
    except OSError as error:
        raise UnreadableError(f"its shard cannot be read: {error.strerror or error}") from error
    except DovetailError as error:
        raise UnreadableError(str(error)) from error


def table_of(archive: TarArchive, stamp: tuple[int, int]) -> Table:
    """Return the images of a shard, one per key, and the names of images that are skipped."""
    members: list[Member] = []
    dotted: list[tuple[tuple[str, str], str]] = []
    taken: set[tuple[str, str]] = set()
    last = None
    for member in archive.members():
        folder, _, file = member.name.rpartition("/")
        key, _, suffix = file.partition(".")
        if f".{suffix.lower()}" in SUFFIXES and key and (folder, key) != last:
            last = folder, key
            taken.add(last)
            members.append(member)
        elif key and "." in suffix and named_as_image(file):
            dotted.append(((folder, key), member.name))
    return Table(archive, members, stamp, tuple(name for owner, name in dotted if owner not in taken))


def open_shards(data: str, *, fetch: bool = True) -> ShardSource:
    """Open the shards in a folder, or those that a pattern expands to (see `dovetail.data.shards.names`).

    Args:
        data: Folder or pattern.
        fetch: Whether shards may be downloaded.

    Raises:
        DovetailError: There are no images, a shard cannot be read, or a download is not allowed or not possible.
    """
    folder = Path(data)
    names = shards_in(folder) if folder.is_dir() else expand(data)
    remote = [name for name in names if local_path(name) is None]
    if remote:
        refuse_network_in_file("data", data, typed=fetch)
        check_fetchable(remote[0])
        check_cache(default_cache())  # now, and not in each worker when it needs the first shard
    sizes = known_sizes(names)
    missing = [name for name in names if name not in sizes]
    dotted: list[str] = []
    if missing:
        log.info("Counting the images in %s shards; a %s in their folder avoids this.", f"{len(missing):,}", SIZES)
        tables = counted(missing)
        sizes |= {name: len(table.members) for name, table in tables.items()}
        dotted = [member for table in tables.values() for member in table.dotted]
    told = (
        f"Skipped {words(len(dotted), 'image')} such as {dotted[0]!r}, because WebDataset ends a key at the first "
        "dot. Rename them, or unpack the shards and write new ones with `dovetail prepare`."
        if dotted
        else ""
    )
    if not sum(sizes[name] for name in names):
        raise DataError(
            told
            or f"Found no image in the {words(len(names), 'shard')} of {data!r}; their members must have an image "
            "suffix, such as 0001.jpg."
        )
    return ShardSource(names, [sizes[name] for name in names], left_out=told)


def counted(names: Sequence[str]) -> dict[str, Table]:
    """Read shards and return their tables."""
    cache = ShardCache(default_cache(), keep=FEWEST_OPEN)
    found = {}
    for name in names:
        here = local_path(name)
        try:
            found[name] = list_shard(cache.path(name) if here is None else here)
        except UnreadableError as error:
            raise DataError(f"The shard {name!r} cannot be read ({error}); download or create it again.") from error
    return found


def known_sizes(names: Sequence[str]) -> dict[str, int]:
    """Return the number of images of the shards that are listed in a `sizes.json` in their folder."""
    found: dict[str, int] = {}
    folders: dict[Path, dict[str, int]] = {}
    for name in names:
        path = local_path(name)
        if path is None:
            continue
        if path.parent not in folders:
            sizes = path.parent / SIZES
            folders[path.parent] = read_sizes(sizes) if sizes.is_file() else {}
        if path.name in folders[path.parent]:
            found[name] = folders[path.parent][path.name]
    return found
