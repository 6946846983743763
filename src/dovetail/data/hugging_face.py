"""Tables of Hugging Face's `datasets`: images as the bytes in a column, decoded here as every other file.

    a folder that `save_to_disk` wrote      the split "train", or the only one
    hf:NAME or hf:NAME#SPLIT                what `load_dataset` finds: a folder of Parquet files, or a set of the hub
    a `datasets.Dataset`                    in Python

The table stays on disk; what is in memory does not grow with it. The package is optional:
`pip install dovetail-ssl[datasets]`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from dovetail.data.order import Order, ShardOrder
from dovetail.data.reading.decode import Photograph, UnreadableError, open_bytes, read_file
from dovetail.data.sources import ImageSource
from dovetail.errors import DataError, ResourceError
from dovetail.provenance import refuse_network_in_file

NAMED = "hf:"
IMAGES = ("image", "img", "pixel_values", "jpg", "png")
ROWS_TOGETHER = 1000
WINDOW_IMAGES = 20_000


class TableSource(ImageSource):
    """Images in one column of a table, its rows in the order of shards: runs of rows that are read together."""

    def __init__(self, table: Any, column: str, *, called: str = "table") -> None:
        """Take a `datasets.Dataset` whose images are not decoded, see `undecoded`.

        Args:
            table: Rows with {"bytes": ..., "path": ...} in `column`.
            column: Of the images.
            called: What to call the table in errors.
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

    def open(self, index: int, channels: int) -> Photograph:
        return open_bytes(self.encoded(index), channels)

    def encoded(self, index: int) -> bytes:
        try:
            value = self._table[index][self._column]
        except Exception as error:  # Arrow raises almost anything on damaged files
            raise UnreadableError(f"{type(error).__name__}: {error}") from error
        if not value or (value.get("bytes") is None and not value.get("path")):
            raise UnreadableError(f"its row has nothing in column {self._column!r}")
        content: bytes | None = value["bytes"]
        return read_file(value["path"]) if content is None else content


def is_saved(folder: Path) -> bool:
    """Whether `datasets` saved a set in a folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def open_table(data: Any, *, fetch: bool = True) -> TableSource:
    """Return the images in a table, named as in the module's docstring; "hf:" needs `fetch`, as it reaches the hub.

    Raises:
        DovetailError: Without the package, and for a table that cannot be read or has no column of images.
    """
    if isinstance(data, str) and data.startswith(NAMED):
        refuse_network_in_file("data", data, typed=fetch)
        package = installed(data)
        name, _, split = data.removeprefix(NAMED).partition("#")
        found = read(lambda: package.load_dataset(name, split=split or None), f"The dataset {name!r}")
    elif isinstance(data, str | Path):
        package = installed(str(data))
        found = read(lambda: package.load_from_disk(str(data)), f"The folder {str(data)!r}")
    else:
        found = data
    called = str(data) if isinstance(data, str | Path) else "dataset"
    table = only_split(found, called)
    if type(table).__name__.startswith("Iterable"):
        raise DataError(f"{called} is read as a stream, which cannot go on where it stopped; load it as a table.")
    return TableSource(undecoded(table), image_column(table, called), called=called)


def installed(asked: str) -> Any:
    """Return the package; raise `ResourceError` if it is not installed."""
    try:
        import datasets
    except ImportError as error:
        raise ResourceError(
            f"{asked} is a Hugging Face dataset, and the package datasets is not installed; install it with "
            "`pip install 'dovetail-ssl[datasets]'`."
        ) from error
    return datasets


def read(load: Callable[[], Any], what: str) -> Any:
    """Return what `load` does; raise `DataError` where it fails."""
    try:
        return load()
    except Exception as error:  # Arrow and the hub raise almost anything
        reason = " ".join(str(error).split())[:120].rstrip(".")
        raise DataError(f"{what} cannot be read as a Hugging Face dataset ({reason}).") from error


def only_split(found: Any, called: str) -> Any:
    """Return a table itself, or of several splits the one named train, or the only one."""
    if not isinstance(found, dict):
        return found
    if "train" not in found and len(found) != 1:
        raise DataError(
            f"{called} has the splits {', '.join(map(str, found))} and none named train; name one as 'hf:NAME#SPLIT'."
        )
    return found["train"] if "train" in found else next(iter(found.values()))


def undecoded(table: Any) -> Any:
    """Return a table whose images are given as their bytes."""
    import datasets

    for name in image_columns(table):
        table = table.cast_column(name, datasets.Image(decode=False))
    return table


def image_columns(table: Any) -> list[str]:
    """Return the names of the columns that hold images."""
    return [name for name, feature in (table.features or {}).items() if type(feature).__name__ == "Image"]


def image_column(table: Any, called: str) -> str:
    """Return the one column of images, or the one with the usual name.

    Raises:
        DataError: For none, and for several without such a name.
    """
    columns = image_columns(table)
    usual = [name for name in IMAGES if name in columns]
    if len(columns) == 1 or usual:
        return usual[0] if usual else columns[0]
    found = f"several columns of images ({', '.join(columns)})" if columns else "no column of images"
    raise DataError(
        f"{called} has {found} among {', '.join(table.features or {})}; call one of them {IMAGES[0]!r}, of the kind "
        "datasets.Image."
    )
