"""Hugging Face datasets. The encoded bytes are read from an image column and decoded like any other file.

    a folder written by `save_to_disk`      the split "train", or the only one
    a .parquet file, or a folder of them    the files with "train" in their names, or all of them
    hf:NAME or hf:NAME#SPLIT                anything that `load_dataset` finds: Parquet files or a dataset of the hub
    a `datasets.Dataset`                    in Python; with `set_transform`, its items are those of the transform

Streaming datasets are read by `dovetail.data.streams`.

The table stays on disk, so memory use does not grow with the dataset. `datasets` converts Parquet files once, into its
cache (`HF_HOME`). The package is optional: `pip install dovetail-ssl[datasets]`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dovetail.data.items import KEYS
from dovetail.data.order import Order, ShardOrder
from dovetail.data.reading.decode import LazyImage, UnreadableError, open_bytes, read_file
from dovetail.data.sources import DatasetSource, ImageSource
from dovetail.errors import DataError, ResourceError
from dovetail.provenance import refuse_network_in_file

NAMED = "hf:"
PARQUET = ".parquet"
_BESIDE = (PARQUET, ".json", ".jsonl", ".md", ".txt", ".yaml", ".yml")
ROWS_TOGETHER = 1000
WINDOW_IMAGES = 20_000


class TableSource(ImageSource):
    """Images in one column of a table. Rows are shuffled in blocks, like shards, so that reads stay sequential."""

    def __init__(self, table: Any, column: str, *, called: str = "table") -> None:
        """Wrap a `datasets.Dataset` whose images are not decoded (see `undecoded`).

        Args:
            table: Table with {"bytes": ..., "path": ...} in `column`.
            column: Name of the image column.
            called: Name of the table in error messages.
        """
        self._table = table.select_columns(column)
        self._column = column
        self._called = called

    @property
    def num_images(self) -> int:
        return len(self._table)

    def name(self, index: int) -> str:
        return f"{self._called}[{index}]"

    def order(self, *, seed: int, epoch: int) -> Order:
        rest = self.num_images % ROWS_TOGETHER
        counts = np.full(self.num_images // ROWS_TOGETHER + (rest > 0), ROWS_TOGETHER, dtype=np.int64)
        if rest:
            counts[-1] = rest
        return ShardOrder(counts, seed=seed, epoch=epoch, window_images=WINDOW_IMAGES)

    def open(self, index: int, channels: int) -> LazyImage:
        return open_bytes(self.encoded(index), channels)

    def encoded(self, index: int) -> bytes:
        try:
            value = self._table[index][self._column]
        except Exception as error:  # Arrow raises almost anything on damaged files
            raise UnreadableError(f"{type(error).__name__}: {error}") from error
        if not value or (value.get("bytes") is None and not value.get("path")):
            raise UnreadableError(f"its row has no image in column {self._column!r}")
        content: bytes | None = value["bytes"]
        return read_file(value["path"]) if content is None else content


def is_saved(folder: Path) -> bool:
    """Return whether a folder was written by `datasets.Dataset.save_to_disk`."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def parquet_files(data: Path) -> list[Path]:
    """Return a Parquet file, or those in a folder (or its folder `data`) that contains no other data, sorted.

    Of files of several splits, those with "train" in their names are returned.
    """
    if data.suffix.lower() == PARQUET and data.is_file():
        return [data]
    for folder in (data, data / "data"):
        inside = [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
        found = sorted(path for path in inside if path.suffix.lower() == PARQUET)
        if found and all(path.suffix.lower() in _BESIDE for path in inside):
            return [path for path in found if "train" in path.name.lower()] or found
    return []


def open_table(data: Any, *, fetch: bool = True) -> ImageSource:
    """Open a Hugging Face dataset (see the module's docstring for its names). Names with "hf:" need `fetch`.

    Raises:
        DovetailError: The package is not installed, or the table cannot be read or has no image column.
    """
    if isinstance(data, str) and data.startswith(NAMED):
        refuse_network_in_file("data", data, typed=fetch)
        package = installed(data)
        name, _, split = data.removeprefix(NAMED).partition("#")
        found = read(lambda: package.load_dataset(name, split=split or None), f"The dataset {name!r}")
    elif isinstance(data, str | Path):
        package = installed(str(data))
        files = [str(path) for path in parquet_files(Path(data))]
        found = read(
            lambda: package.Dataset.from_parquet(files) if files else package.load_from_disk(str(data)),
            f"{'The file' if Path(data).is_file() else 'The folder'} {str(data)!r}",
        )
    else:
        found = data
    called = str(data) if isinstance(data, str | Path) else "dataset"
    table = only_split(found, called)
    if type(table).__name__.startswith("Iterable"):
        raise DataError(
            "The data is a streaming dataset, which has no random access; load it without streaming, or write it to "
            "shards with dovetail.prepare(data=stream, shards=folder)."
        )
    if table.format["type"] == "custom":  # `set_transform` or `with_transform`
        return DatasetSource(table)
    return TableSource(undecoded(table), image_column(table, called), called=called)


def installed(asked: str) -> Any:
    """Return the package; raise `ResourceError` if it is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise ResourceError(
            f"{asked} is a Hugging Face dataset, but the package datasets is not installed; install it with "
            "`pip install 'dovetail-ssl[datasets]'`."
        ) from error
    return datasets


def read(load: Callable[[], Any], what: str) -> Any:
    """Return `load()`, and raise `DataError` if it fails."""
    try:
        return load()
    except Exception as error:  # Arrow and the hub raise almost anything
        reason = " ".join(str(error).split())[:120].rstrip(".")
        raise DataError(f"{what} cannot be read as a Hugging Face dataset ({reason}).") from error


def only_split(found: Any, called: str) -> Any:
    """Return the table: of several splits the one named "train", or the only one."""
    if not isinstance(found, dict):
        return found
    if "train" not in found and len(found) != 1:
        raise DataError(
            f"{called} has the splits {', '.join(map(str, found))} and none named train; specify one: 'hf:NAME#SPLIT'."
        )
    return found["train"] if "train" in found else next(iter(found.values()))


def undecoded(table: Any) -> Any:
    """Return the table with its image columns cast to encoded bytes."""
    import datasets

    table = table if table.features is None else table.with_format(None)
    for name in image_columns(table):
        table = table.cast_column(name, datasets.Image(decode=False))
    return table


def image_columns(table: Any) -> list[str]:
    """Return the names of the image columns.

    Without any, as in a Parquet file that `datasets` did not write, these are the columns with a usual name that hold
    bytes, or bytes and a path.
    """
    features = table.features or {}
    found = [name for name, feature in features.items() if type(feature).__name__ == "Image"]
    return found or [name for name in KEYS if name in features and holds_files(features[name])]


def holds_files(feature: Any) -> bool:
    """Return whether the values of a column are bytes, or {"bytes": ..., "path": ...}."""
    one = feature.get("bytes") if isinstance(feature, dict) else feature
    return getattr(one, "dtype", None) in ("binary", "large_binary")


def image_column(table: Any, called: str) -> str:
    """Return the name of the image column: the only one, or the one with a usual name such as "image".

    Raises:
        DataError: There is no image column, or several and none has a usual name.
    """
    columns = image_columns(table)
    usual = [name for name in KEYS if name in columns]
    if len(columns) == 1 or usual:
        return usual[0] if usual else columns[0]
    found = f"several image columns ({', '.join(columns)})" if columns else "no image column"
    raise DataError(
        f"{called} has {found} among {', '.join(table.features or {})}; name one column {KEYS[0]!r} and cast it to "
        "datasets.Image."
    )
