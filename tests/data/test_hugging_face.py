"""Tables of Hugging Face's `datasets` as a source of images."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset

from dovetail.data.hugging_face import TableSource
from dovetail.data.loader import make_loader
from dovetail.data.open import open_source
from dovetail.data.reading.decode import UnreadableError, open_bytes
from dovetail.data.shards.prepare import prepare
from dovetail.errors import DovetailError
from dovetail.views.plan import ViewPlan, ViewSpec
from tests.data.tars import jpeg

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def table(count: int, **more: Any) -> Any:
    """Return a table of images with captions."""
    columns = {"image": [{"bytes": jpeg(number), "path": None} for number in range(count)], "text": ["a"] * count}
    features = {"image": datasets.Image(), "text": datasets.Value("string")}
    for name, (values, feature) in more.items():
        columns[name], features[name] = values, feature
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_a_table_in_python_and_on_disk(tmp_path: Path) -> None:
    made = table(5)
    made.save_to_disk(str(tmp_path / "plain"))
    datasets.DatasetDict(test=table(2), train=made).save_to_disk(str(tmp_path / "splits"))
    (tmp_path / "parquet").mkdir()
    made.to_parquet(str(tmp_path / "parquet" / "train-0.parquet"))
    made.select([0]).to_parquet(str(tmp_path / "parquet" / "test-0.parquet"))
    (tmp_path / "hub" / "data").mkdir(parents=True)
    (tmp_path / "hub" / "README.md").write_text("")
    made.to_parquet(str(tmp_path / "hub" / "data" / "0.parquet"))
    files = (tmp_path / "parquet" / "train-0.parquet", tmp_path / "parquet", str(tmp_path / "hub"))
    for data in (made, tmp_path / "plain", str(tmp_path / "splits"), f"hf:{tmp_path / 'parquet'}#train", *files):
        source = open_source(data)
        assert isinstance(source, TableSource)
        assert source.num_images == 5
        for index in range(5):
            assert torch.equal(source.open(index, 3).decode(1), open_bytes(jpeg(index), 3).decode(1))
    assert source.name(3) == f"{tmp_path / 'hub'}[3]"


def test_parquet_that_another_library_wrote(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    for name, values in (("jpg", [jpeg(0), jpeg(1)]), ("image", [{"bytes": jpeg(0), "path": "a"}])):
        parquet.write_table(arrow.table({"text": ["a"] * len(values), name: values}), tmp_path / f"{name}.parquet")
        source = open_source(tmp_path / f"{name}.parquet")
        assert source.num_images == len(values)
        assert source.encoded(0) == jpeg(0)
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    with pytest.raises(DovetailError, match="cannot be read as a Hugging Face dataset"):
        open_source(tmp_path / "damaged.parquet")


def test_a_transform_gives_the_images() -> None:
    made = table(2)
    made.set_transform(lambda rows: {"pixel_values": [np.asarray(image)[:4, :6] for image in rows["image"]]})
    source = open_source(made)
    assert source.open(1, 3).decode(1).shape == (3, 4, 6)
    for kind in ("torch", "numpy"):
        assert isinstance(open_source(table(2).with_format(kind)), TableSource)


def test_it_is_read_by_workers_and_from_any_step(tmp_path: Path) -> None:
    table(9).save_to_disk(str(tmp_path / "set"))
    plan = ViewPlan((ViewSpec(16), ViewSpec(16)))

    def batches(start: int = 0, workers: int = 0) -> list[Any]:
        source = pickle.loads(pickle.dumps(open_source(tmp_path / "set")))
        loader = make_loader(source, plan, global_batch=3, total_steps=6, seed=0, start_step=start, num_workers=workers)
        return list(loader)

    whole = batches()
    assert sorted(index for batch in whole[:3] for index in batch.index.tolist()) == list(range(9))
    for start, workers in ((0, 2), (4, 0)):
        for mine, theirs in zip(batches(start, workers), whole[start:], strict=True):
            assert torch.equal(mine.crops[0], theirs.crops[0])


def test_rows_without_a_photograph_have_a_reason() -> None:
    rows = [None, {"bytes": None, "path": "/nowhere/a.jpg"}, {"bytes": b"words", "path": None}]
    made = datasets.Dataset.from_dict({"image": rows}, features=datasets.Features({"image": datasets.Image()}))
    source = open_source(made)
    for index, reason in enumerate(
        ("no image in column 'image'", "No such file", "not an image in a supported format")
    ):
        with pytest.raises(UnreadableError, match=reason):
            source.open(index, 3)


def test_the_order_takes_rows_together() -> None:
    class Long:
        def __len__(self) -> int:
            return 100_500

        def select_columns(self, name: str) -> Long:
            return self

    order = TableSource(Long(), "image").order(seed=0, epoch=0)
    some = order[30_000:30_100]
    assert len(set((some // 1000).tolist())) <= 21
    assert sorted(order[:]) == list(range(100_500))


def test_which_column_and_which_split(tmp_path: Path) -> None:
    image = datasets.Image()
    both = table(1).rename_column("image", "left")
    both = both.add_column("right", [{"bytes": jpeg(1), "path": None}]).cast_column("right", image)
    with pytest.raises(DovetailError, match=r"several image columns \(left, right\)"):
        open_source(both)
    with pytest.raises(DovetailError, match="no image column among text"):
        open_source(table(1).remove_columns("image"))
    assert open_source(both.rename_column("right", "image")).encoded(0) == jpeg(1)
    splits = datasets.DatasetDict(a=table(1), b=table(2))
    with pytest.raises(DovetailError, match="splits a, b and none named train"):
        open_source(splits)
    with pytest.raises(DovetailError, match="streaming"):
        open_source(table(2).to_iterable_dataset())
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(DovetailError, match="cannot be read as a Hugging Face dataset"):
        open_source(tmp_path)


def test_a_stream_is_written_to_shards(tmp_path: Path) -> None:
    prepare(data=table(7).to_iterable_dataset(), shards=tmp_path / "hub", images_per_shard=3)
    source = open_source(tmp_path / "hub")
    assert source.num_images == 7
    assert sorted(source.encoded(index) for index in range(7)) == sorted(jpeg(index) for index in range(7))

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[Any]:
            yield from ({"image": np.full((4, 5, 12), 700, np.uint16)}, "text", (jpeg(3), "label"))

    written = prepare(data=Stream(), shards=tmp_path / "torch")
    assert [name for name, _ in written.left_out] == ["item 1"]
    assert open_source(tmp_path / "torch").encoded(1) == jpeg(3)
    with pytest.raises(DovetailError, match="The stream contains no images"):
        prepare(data=table(1).to_iterable_dataset().take(0), shards=tmp_path / "none")


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DovetailError, match=r"pip install 'dovetail-ssl\[datasets\]'"):
        open_source("hf:beans")
