"""`prepare`: writes images as shards, which can be read sequentially from any disk or network."""

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

    data: Any = option(
        None,
        "Images, as for `dovetail pretrain`, or (in Python) a streaming dataset, which is read once.",
        several=True,
        existing=True,
    )
    shards: str | Path = option(
        "",
        "Output folder for the shards. It must be new or empty unless `overwrite` is set.",
    )
    images_per_shard: int = option(5000, "Images in each shard; the last one may have fewer.", COUNT)
    seed: int = option(0, "Seed of the image order.", NOT_NEGATIVE)
    overwrite: bool = option(False, "Replace the shards that are already in the folder.")


@takes(PrepareOptions)
def prepare(options: PrepareOptions) -> Written:
    """Write images as WebDataset shards: tar files in random order, and a `sizes.json` with their numbers of images.

    Returns:
        The folder, the number of images in each shard, and the unreadable images.

    Raises:
        DovetailError: The images cannot be read, or the folder is not writable.
    """
    from dovetail.data.open import open_source
    from dovetail.data.shards.write import write_shards, write_stream
    from dovetail.data.streams import items_of, stream_in

    if options.data is None:
        raise OptionsError("--data is missing; specify a folder of images.")
    if any(Path(path).resolve() == Path(options.shards).resolve() for path in paths_in(options.data)):
        raise OptionsError(f"--shards is the folder of the images ({options.shards}); specify another folder.")
    folder, _ = checked_folder(options.shards, overwrite=options.overwrite)
    stream = stream_in(options.data)
    source = None if stream is not None else open_source(options.data)
    if source is not None and source.left_out:
        print(source.left_out)
    total = "" if source is None else f" of {source.num_images:,}"

    def tell(done: int) -> None:
        print(f"{done:,}{total} images", flush=True)

    with in_use(folder, option="shards", keep=False):
        # Check again: another process may have written shards meanwhile.
        _, old = checked_folder(options.shards, overwrite=options.overwrite)
        if source is not None:
            check_apart(options.data, source, old)
        for path in old:  # only after the images were found
            path.unlink()
        how: dict[str, Any] = {"images_per_shard": options.images_per_shard, "progress": tell}
        if stream is not None:
            written = write_stream(items_of(stream, seed=options.seed), folder, **how)
        elif source is not None:
            written = write_shards(source, folder, seed=options.seed, **how)
    print(written)
    return written


def paths_in(data: Any) -> list[str | Path]:
    """Return the path or the paths of images, or an empty list for other data."""
    several = data if isinstance(data, list | tuple) else [data]
    return [one for one in several if isinstance(one, str | Path)]


def checked_folder(shards: str | Path, *, overwrite: bool) -> tuple[Path, list[Path]]:
    """Return the output folder and the old shards in it, which will be removed. Other files are never removed."""
    from dovetail.data.shards.names import SIZES

    if not str(shards):
        raise OptionsError("--shards is missing; specify an output folder.")
    folder = Path(shards)
    if folder.exists() and not folder.is_dir():
        raise OptionsError(f"--shards {folder} is a file; specify a folder.")
    found = sorted(path for path in folder.iterdir() if path.name != LOCK) if folder.is_dir() else []
    own = [path for path in found if path.name == SIZES or path.match("shard-*.tar") or path.match("shard-*.tmp")]
    if len(own) < len(found):
        raise OptionsError(
            f"{folder} contains other files, such as {min(set(found) - set(own)).name!r}; specify another folder."
        )
    if own and not overwrite:
        raise OptionsError(f"{folder} already contains shards; add --overwrite to replace them.")
    return folder, own


def check_apart(data: Any, source: ImageSource, old: list[Path]) -> None:
    """Raise `OptionsError` if the images are in one of the files that will be removed."""
    from dovetail.data.shards.fetch import local_path
    from dovetail.data.shards.source import ShardSource

    if isinstance(source, ShardSource):
        files = [path for path in map(local_path, source.sizes) if path is not None]
    else:
        files = [Path(path) for path in paths_in(data)]
    read = {path.resolve() for path in files}
    for path in old:
        if path.resolve() in read:
            raise OptionsError(
                f"{path} would be replaced, but the images are read from it; specify another folder with --shards."
            )
