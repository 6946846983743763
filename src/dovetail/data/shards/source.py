"""Images in WebDataset shards: tar files of some thousand images each, here or fetched from elsewhere.

What is in memory is a number for each shard, and a table of places for each of the few shards that are being read:
10^8 images in 10^4 shards take no more than 10^3 images in one.

An image is one member of a shard whose name ends, after its first dot, in an image's suffix ("0001.jpg", and not
"0001.mask.png" or "0001.json"); of several for one key the first counts. All else in a shard is passed over.
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
from dovetail.data.reading.decode import SUFFIXES, Photograph, UnreadableError, open_bytes
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
    """Where the images of one shard lie.

    Attributes:
        archive: The file.
        members: Those that are images.
        stamp: Which file it was.
        dotted: Names of images that belong to no image, as WebDataset takes the first dot for a key's end.
    """

    archive: TarArchive
    members: list[Member]
    stamp: tuple[int, int]
    dotted: tuple[str, ...] = ()


class ShardSource(ImageSource):
    """Images of many shards, numbered shard after shard.

    Image `index` is found by arithmetic; its shard is listed when it is first needed, by each process for itself.
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
        """Take the shards as they are named; none is opened.

        Args:
            names: Paths or URLs.
            counts: Images in each.
            cache: Folder for shards that have to be fetched; one for this user and these shards unless given.
            window_images: Images that are shuffled together, about.
            left_out: A sentence on what is not read.
        """
        self.left_out = left_out
        self._names = list(names)
        self._counts = np.asarray(counts, dtype=np.int64)
        self._ends = np.cumsum(self._counts)
        self._window_images = window_images
        mean = max(int(self._counts.mean()), 1) if len(self._counts) else 1
        # Those of a window and of the next, so that every shard is listed and fetched once an epoch.
        self._most_open = min(max(2 * (window_images // mean + 1), FEWEST_OPEN), MOST_OPEN)
        self._cache = ShardCache(cache or default_cache(), keep=self._most_open)
        self._tables: OrderedDict[int, Table] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_tables": OrderedDict()}  # workers list what they read themselves

    @property
    def num_images(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def sizes(self) -> dict[str, int]:
        """Images by the name of the shard."""
        return dict(zip(self._names, self._counts.tolist(), strict=True))

    def place(self, index: int) -> tuple[int, int]:
        """Return the number of an image's shard, and its own within the shard."""
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - int(self._ends[shard] - self._counts[shard])

    def name(self, index: int) -> str:
        shard, within = self.place(index)
        return f"{self._names[shard]}#{within}"

    def order(self, *, seed: int, epoch: int) -> Order:
        return ShardOrder(self._counts, seed=seed, epoch=epoch, window_images=self._window_images)

    def fetch(self, index: int) -> None:
        self._table(self.place(index)[0])

    def open(self, index: int, channels: int) -> Photograph:
        return open_bytes(self.encoded(index), channels)

    def encoded(self, index: int) -> bytes:
        shard, within = self.place(index)
        table = self._table(shard)
        if within >= len(table.members):
            raise UnreadableError(f"its shard has {len(table.members):,} images and not {self._counts[shard]:,}")
        member = table.members[within]
        try:
            return table.archive.read(member)
        except UnreadableError as error:
            raise UnreadableError(f"{member.name}: {error}") from error

    def _table(self, shard: int) -> Table:
        """Return the table of a shard, listed and fetched where that is still to be done."""
        known, here = self._tables.get(shard), local_path(self._names[shard])
        path = self._cache.path(self._names[shard]) if here is None else here
        # A shard that was fetched again, as another process had no room for it, is another file.
        if known is None or (here is None and known.stamp != stamp_of(path)):
            known = list_shard(path)
            self._tables[shard] = known
            if len(self._tables) > self._most_open:
                self._tables.popitem(last=False)
        self._tables.move_to_end(shard)
        return known


def default_cache() -> Path:
    """Return the folder that fetched shards are kept in: below $DOVETAIL_CACHE, else the user's cache."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dovetail"
    return Path(os.environ.get("DOVETAIL_CACHE") or user) / "shards"


def stamp_of(path: Path) -> tuple[int, int]:
    """Return what tells a file from another one of its name."""
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def list_shard(path: Path) -> Table:
    """Return the table of a shard on this machine; raise `UnreadableError` if it is none."""
    try:
        archive = open_archive(path)
        if not isinstance(archive, TarArchive):
            raise UnreadableError("its shard is no tar")
        return table_of(archive, stamp_of(path))
    except OSError as error:
        raise UnreadableError(f"its shard cannot be read: {error.strerror or error}") from error
    except DovetailError as error:
        raise UnreadableError(str(error)) from error


def table_of(archive: TarArchive, stamp: tuple[int, int]) -> Table:
    """Return the members of a shard that are images, one for each key, and the images that are left out."""
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
    """Return the images in the shards that `data` names: a folder, or a pattern; see `shard_names`.

    Args:
        data: The folder or the pattern.
        fetch: Whether shards may be fetched over the network.

    Raises:
        DataError: There are none, or one of them cannot be counted, or those to fetch may not be or cannot be kept.
    """
    folder = Path(data)
    names = shards_in(folder) if folder.is_dir() else expand(data)
    remote = [name for name in names if local_path(name) is None]
    if remote:
        refuse_network_in_file("data", data, typed=fetch)
        check_fetchable(remote[0])
        check_cache(default_cache())  # now, and not in each loading process when it needs the first shard
    sizes = known_sizes(names)
    missing = [name for name in names if name not in sizes]
    dotted: list[str] = []
    if missing:
        log.info("Counting the images in %s shards; a %s beside them saves this.", f"{len(missing):,}", SIZES)
        tables = counted(missing)
        sizes |= {name: len(table.members) for name, table in tables.items()}
        dotted = [member for table in tables.values() for member in table.dotted]
    told = (
        f"Left out: {words(len(dotted), 'image')} such as {dotted[0]!r}: WebDataset ends a name at its first dot. "
        "Rename them, or unpack the shards and write them anew with `dovetail prepare`."
        if dotted
        else ""
    )
    if not sum(sizes[name] for name in names):
        raise DataError(
            told
            or f"There is no image in the {words(len(names), 'shard')} of {data!r}; their members' names must "
            "end in an image's suffix, such as 0001.jpg."
        )
    return ShardSource(names, [sizes[name] for name in names], left_out=told)


def counted(names: Sequence[str]) -> dict[str, Table]:
    """Return the tables of shards, which are read for it."""
    cache = ShardCache(default_cache(), keep=FEWEST_OPEN)
    found = {}
    for name in names:
        here = local_path(name)
        try:
            found[name] = list_shard(cache.path(name) if here is None else here)
        except UnreadableError as error:
            raise DataError(f"The shard {name!r} cannot be counted: {error}.") from error
    return found


def known_sizes(names: Sequence[str]) -> dict[str, int]:
    """Return how many images there are in those shards whose folders have a `sizes.json`."""
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
