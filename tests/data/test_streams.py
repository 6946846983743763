"""Items of streaming datasets as the bytes of files."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import DataLoader, IterableDataset

from dovetail.data.reading.decode import UnreadableError
from dovetail.data.shards.write import MOST_UNREADABLE, write_stream
from dovetail.data.streams import encoded, items_of, stream_in
from dovetail.errors import DataError
from tests.data.tars import jpeg

datasets = pytest.importorskip("datasets")


class Endless(IterableDataset[Any]):
    """A stream of one item that never ends, and counts how often it was read."""

    def __init__(self, item: Any) -> None:
        self.item, self.read = item, 0

    def __iter__(self) -> Iterator[Any]:
        while True:
            self.read += 1
            yield self.item


def photos(count: int, column: str = "image") -> Any:
    """Return a Hugging Face stream of files in one column, beside a caption."""
    rows = {column: [{"bytes": jpeg(number), "path": None} for number in range(count)], "text": ["a"] * count}
    features = datasets.Features({column: datasets.Image(), "text": datasets.Value("string")})
    return datasets.Dataset.from_dict(rows, features=features).to_iterable_dataset()


def contents(stream: Any) -> list[bytes]:
    """Return the files of a stream, sorted."""
    return sorted(encoded(item) for item in items_of(stream_in(stream), seed=0))


FILES = sorted(jpeg(number) for number in range(3))


def test_files_are_kept_as_they_are(tmp_path: Path) -> None:
    def rows() -> Iterator[Any]:
        for number in range(3):
            yield {"image": {"bytes": jpeg(number), "path": None}}

    def paths() -> Iterator[Any]:
        for number in range(3):
            (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
            yield {"image": {"bytes": None, "path": str(tmp_path / f"{number}.jpg")}}

    assert contents(photos(3, "left")) == FILES
    assert contents(photos(3).with_format("torch")) == FILES
    assert contents(datasets.IterableDatasetDict(train=photos(3), test=photos(1))) == FILES
    for unknown in (rows, paths):
        stream = datasets.IterableDataset.from_generator(unknown)
        assert stream.features is None
        assert contents(stream) == FILES


def test_files_in_an_archive_that_the_stream_names_by_url(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as packed:
        for number in range(3):
            packed.writestr(f"{number}.jpg", jpeg(number))
    stream = datasets.load_dataset("imagefolder", data_files=str(tmp_path / "photos.zip"), streaming=True)
    assert contents(stream) == FILES


def test_images_that_a_map_has_decoded_keep_their_pixels() -> None:
    mapped = photos(3).map(lambda row: {"image": row["image"].resize((6, 4))})
    shown = [np.asarray(Image.open(io.BytesIO(one))) for one in contents(mapped)]
    expected = [np.asarray(Image.open(io.BytesIO(jpeg(number))).resize((6, 4))) for number in range(3)]
    assert all(any(np.array_equal(one, other) for other in shown) for one in expected)


def test_what_is_a_stream() -> None:
    endless = Endless(0)
    assert stream_in(endless) is endless
    assert stream_in(DataLoader(endless)) is endless
    for other in ("photos", [jpeg(0)], datasets.Dataset.from_dict({"image": [jpeg(0)]})):
        assert stream_in(other) is None
    with pytest.raises(DataError, match="splits a, b and none named train"):
        stream_in(datasets.IterableDatasetDict(a=photos(1), b=photos(1)))


def test_a_share_of_a_stream_is_not_taken_for_all_of_it() -> None:
    from datasets.distributed import split_dataset_by_node

    with pytest.raises(DataError, match="pass it as it was before split_dataset_by_node"):
        stream_in(split_dataset_by_node(photos(4), rank=0, world_size=2))


def test_several_image_columns() -> None:
    stream = photos(1, "left").map(lambda row: {**row, "right": row["left"]})
    features = {name: datasets.Image() for name in ("left", "right")} | {"text": datasets.Value("string")}
    with pytest.raises(DataError, match=r"several image columns \(left, right\)"):
        contents(stream.cast(datasets.Features(features)))


def test_a_stream_that_fails_says_where() -> None:
    class Broken(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield jpeg(0)
            raise ConnectionError("reset by peer")

    with pytest.raises(DataError, match=r"failed after 1 items \(ConnectionError: reset by peer\)"):
        contents(Broken())
    with pytest.raises(UnreadableError, match="image file is truncated"):
        encoded(Image.open(io.BytesIO(jpeg(0)[:-20])))


def test_an_endless_stream_without_images_ends(tmp_path: Path) -> None:
    endless = Endless("nowhere.jpg")
    with pytest.raises(DataError, match=f"None of {MOST_UNREADABLE:,} images can be read"):
        write_stream(items_of(endless, seed=0), tmp_path, images_per_shard=5)
    assert endless.read == MOST_UNREADABLE
