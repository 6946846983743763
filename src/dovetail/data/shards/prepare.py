"""`prepare`: images become shards that can be read in order, from any disk or network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dovetail.errors import OptionsError
from dovetail.files.locking import LOCK, in_use
from dovetail.options import COUNT, NOT_NEGATIVE, Options, option, takes

if TYPE_CHECKING:
    from dovetail.data.shards.write import Written
    from dovetail.data.sources import ImageSource


@dataclass(frozen=True, kw_only=True)
class PrepareOptions(Options):
    """Options of `dovetail prepare`."""

    data: Any = option(None, "Images, as for `dovetail pretrain`.")
    shards: str | Path = option(
        "",
        "Folder for the shards. It must be new or empty unless `overwrite` is given.",
    )
    images_per_shard: int = option(5000, "Images in each shard; the last one may have fewer.", COUNT)
    seed: int = option(0, "Seed of the image order.", NOT_NEGATIVE)
    overwrite: bool = option(False, "Delete the shards in the folder once the images are found.")


@takes(PrepareOptions)
def prepare(options: PrepareOptions) -> Written:
    """Write images as WebDataset shards: tars in a random order, and how many images each holds.

    Returns:
        What was written.

    Raises:
        DovetailError: For images that cannot be read, or a folder that cannot be written to.
    """
    from dovetail.data.open import open_source
    from dovetail.data.shards.write import write_shards

    if options.data is None:
        raise OptionsError("No data was named; give a folder of images with --data.")
    if isinstance(options.data, str | Path) and Path(options.data).resolve() == Path(options.shards).resolve():
        raise OptionsError(f"{options.shards} is where the images are; name another folder for the shards.")
    folder, _ = checked_folder(options.shards, overwrite=options.overwrite)
    source = open_source(options.data)
    if source.left_out:
        print(source.left_out)

    def tell(done: int) -> None:
        print(f"{done:,} of {source.num_images:,} images", flush=True)

    with in_use(folder, option="shards", keep=False):
        # What another process has written meanwhile counts.
        _, old = checked_folder(options.shards, overwrite=options.overwrite)
        check_apart(options.data, source, old)
        for path in old:  # not before the images are there
            path.unlink()
        written = write_shards(
            source, folder, images_per_shard=options.images_per_shard, seed=options.seed, progress=tell
        )
    print(written)
    return written


def checked_folder(shards: str | Path, *, overwrite: bool) -> tuple[Path, list[Path]]:
    """Return the folder for shards and the files in it of an earlier time, which are to go; other files never are."""
    from dovetail.data.shards.names import SIZES

    if not str(shards):
        raise OptionsError("No folder for the shards was named; give one with --shards.")
    folder = Path(shards)
    if folder.exists() and not folder.is_dir():
        raise OptionsError(f"{folder} is a file; name a folder for the shards.")
    found = sorted(path for path in folder.iterdir() if path.name != LOCK) if folder.is_dir() else []
    own = [path for path in found if path.name == SIZES or path.match("shard-*.tar") or path.match("shard-*.tmp")]
    if len(own) < len(found):
        raise OptionsError(f"{folder} holds other files, such as {min(set(found) - set(own)).name!r}; name another.")
    if own and not overwrite:
        raise OptionsError(f"{folder} holds shards; add --overwrite to write them anew.")
    return folder, own


def check_apart(data: Any, source: ImageSource, old: list[Path]) -> None:
    """Raise `OptionsError` where the images are in one of the files that are to go."""
    from dovetail.data.shards.fetch import local_path
    from dovetail.data.shards.source import ShardSource

    if isinstance(source, ShardSource):
        files = [path for path in map(local_path, source.sizes) if path is not None]
    else:
        files = [Path(data)] if isinstance(data, str | Path) else []
    read = {path.resolve() for path in files}
    for path in old:
        if path.resolve() in read:
            raise OptionsError(
                f"{path} is to be removed, and the images are read from it; name another folder for the shards."
            )
