"""Streaming datasets of Hugging Face and torch, which are read once, from the first item to the last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from dovetail.data.hugging_face import image_column, image_columns, only_split, undecoded
from dovetail.data.items import encoded_item, image_in
from dovetail.data.reading.decode import UnreadableError
from dovetail.errors import DataError

BUFFER_IMAGES = 1000  # that are shuffled together


def stream_in(data: Any) -> Any | None:
    """Return the streaming dataset that `data` is, or that a `DataLoader` reads, or None for other data.

    Raises:
        DataError: A Hugging Face dataset has several splits, and none is named train, or it is split by node.
    """
    data = data.dataset if isinstance(data, DataLoader) else data
    if not is_hugging_face_stream(data):
        return data if isinstance(data, IterableDataset) else None
    stream = only_split(data, "The streaming dataset")
    if getattr(stream, "_distributed", None) is not None:  # one process writes the images for all
        raise DataError(
            "The streaming dataset is split by node and has only a share of the images; pass it as it was before "
            "split_dataset_by_node."
        )
    return stream


def is_hugging_face_stream(data: Any) -> bool:
    """Return whether `data` is an `IterableDataset` or `IterableDatasetDict` of Hugging Face."""
    kind = type(data)
    return kind.__module__.split(".")[0] == "datasets" and kind.__name__.startswith("Iterable")


def items_of(stream: Any, *, seed: int) -> Iterator[Any]:
    """Yield the items of a stream (see `dovetail.data.items.image_in`).

    A Hugging Face stream is shuffled as far as its buffer reaches, and its images are not decoded.

    Raises:
        DataError: The stream fails, or has several image columns.
    """
    done = 0
    try:
        for item in _images_of(stream, seed=seed) if is_hugging_face_stream(stream) else stream:
            yield item
            done += 1
    except DataError:
        raise
    except Exception as error:  # user code, the network, and Arrow raise almost anything
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160].rstrip(".")
        raise DataError(f"The stream failed after {done:,} items ({reason}); start again, or check --data.") from error


def _images_of(stream: Any, *, seed: int) -> Iterator[Any]:
    """Yield the values of a Hugging Face stream's image column, or its items if its columns are unknown."""
    known = stream.features is not None
    # Columns are unknown after `map`, which decodes the images: a buffer would hold whole images.
    table = undecoded(stream.shuffle(seed=seed, buffer_size=BUFFER_IMAGES if known else 1))
    if not known or not image_columns(table):
        yield from table
        return
    column = image_column(table, "The streaming dataset")
    for row in table:
        yield row[column]


def encoded(item: Any) -> bytes:
    """Return the image of a stream's item as the bytes of a file.

    Raises:
        UnreadableError: The item has no image, or it cannot be read.
    """
    try:
        return encoded_item(image_in(_fetched(item)))
    except UnreadableError:
        raise
    except Exception as error:  # one bad item must not end the stream
        raise UnreadableError(f"{type(error).__name__}: {error}") from error


def _fetched(item: Any) -> Any:
    """Return an item, with the bytes of an image that a Hugging Face stream names by URL, as in a remote archive."""
    if not isinstance(item, Mapping) or item.keys() != {"bytes", "path"}:
        return item
    path = item["path"]
    if item["bytes"] is not None or not isinstance(path, str) or "://" not in path:
        return item
    import fsspec

    with fsspec.open(path, "rb") as file:
        return file.read()
