"""Shards: which images there are, each once an epoch, from here or fetched, in memory that does not grow."""

from __future__ import annotations

import json
import pickle
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from dovetail.cli import run as run_command
from dovetail.data.loader import make_loader
from dovetail.data.open import open_source
from dovetail.data.order import ShardOrder, StepSampler
from dovetail.data.reading.decode import UnreadableError
from dovetail.data.shards import fetch
from dovetail.data.shards.fetch import ShardCache
from dovetail.data.shards.source import ShardSource
from dovetail.data.sources import ImageSource
from dovetail.errors import DovetailError
from dovetail.views.batch import ViewBatch
from dovetail.views.plan import ViewPlan, ViewSpec
from tests.data.photos import smooth
from tests.data.tars import jpeg, shards_of, tar_of
from tests.loopback import serving

PLAN = ViewPlan((ViewSpec(16), ViewSpec(16)))


def batches(source: ImageSource, *, start: int = 0, workers: int = 0, rank: int = 0, ranks: int = 1) -> list[ViewBatch]:
    """Return this rank's batches of two epochs of four-image steps."""
    steps = source.num_images // 4
    return list(
        make_loader(
            source,
            PLAN,
            global_batch=4,
            total_steps=2 * steps,
            seed=1,
            start_step=start,
            rank=rank,
            world_size=ranks,
            num_workers=workers,
        )
    )


def test_a_folder_of_shards_has_all_photographs_of_all(tmp_path: Path) -> None:
    source = open_source(shards_of(tmp_path / "shards", [3, 0, 4]))
    assert isinstance(source, ShardSource)
    assert source.num_images == 7
    seen = [source.open(index, 3).decode(1) for index in range(7)]
    for number, pixels in enumerate(seen):
        expected = torch.from_numpy(smooth(20, 30, seed=number)).permute(2, 0, 1)
        assert (pixels.float() - expected.float()).abs().mean() < 6
    assert source.name(4).endswith("photos-002.tar#1")


def test_a_pattern_takes_the_shards_it_names(tmp_path: Path) -> None:
    shards_of(tmp_path, [1, 2, 4])
    source = open_source(str(tmp_path / "photos-{001..002}.tar"))
    assert source.num_images == 6
    with pytest.raises(DovetailError, match=r"photos-003.tar' cannot be read .*No such file"):
        open_source(str(tmp_path / "photos-{002..003}.tar"))


def test_sizes_save_the_counting(tmp_path: Path) -> None:
    shards_of(tmp_path, [2, 2])
    (tmp_path / "sizes.json").write_text(json.dumps({"photos-000.tar": 2, "photos-001.tar": 3}))
    source = open_source(tmp_path)
    assert source.num_images == 5
    with pytest.raises(UnreadableError, match="expected 3 images in its shard, got 2"):
        source.open(4, 3)


def test_only_photographs_count_and_one_for_each_key(tmp_path: Path) -> None:
    names = ["a.jpg", "a.seg.png", "a.json", "b.JPEG", "b.png", "x/b.jpg", ".jpg", "readme", "../c.jpg"]
    tar_of(tmp_path / "s.tar", {name: jpeg(0) for name in names})
    (tmp_path / "sizes.json").write_text('{"other.tar": 1}')
    source = open_source(tmp_path)
    assert source.num_images == 4
    with pytest.raises(UnreadableError, match=r"\.\./c\.jpg: its name contains"):
        source.open(3, 3)


def test_names_with_dots_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["IMG.0001.jpg", "IMG.0002.jpg", "x/2021.05.png", "a.jpg", "a.seg.png", "b.json"]
    tar_of(tmp_path / "s" / "s.tar", {name: jpeg(0) for name in names})
    source = open_source(tmp_path / "s")
    assert source.num_images == 1
    assert source.left_out.startswith("Skipped 3 images such as 'IMG.0001.jpg', because WebDataset")
    assert run_command(["prepare", "--data", str(tmp_path / "s"), "--shards", str(tmp_path / "again")]) == 0
    assert "Skipped 3 images" in capsys.readouterr().out
    tar_of(tmp_path / "t" / "t.tar", {name: jpeg(0) for name in names[:3]})
    with pytest.raises(DovetailError, match="Skipped 3 images"):
        open_source(tmp_path / "t")


def test_shards_without_photographs_are_a_mistake(tmp_path: Path) -> None:
    tar_of(tmp_path / "s.tar", {"a.txt": b"words"})
    with pytest.raises(DovetailError, match="no image in the 1 shard of"):
        open_source(tmp_path)
    (tmp_path / "s.tar").write_bytes(b"this is no tar")
    with pytest.raises(DovetailError, match=r"s.tar' cannot be read"):
        open_source(tmp_path)


def test_every_photograph_comes_once_an_epoch_whatever_the_ranks_and_workers(tmp_path: Path) -> None:
    source = replace_window(open_source(shards_of(tmp_path, [5, 2, 4, 1, 4])), 6)
    alone = batches(source)
    first, second = ([int(i) for batch in alone[half] for i in batch.index] for half in (slice(4), slice(4, 8)))
    assert sorted(first) == sorted(second) == list(range(16))
    assert first != second
    for ranks, workers in ((2, 0), (1, 2), (2, 2)):
        parts = [batches(source, rank=rank, ranks=ranks, workers=workers) for rank in range(ranks)]
        for step, whole in enumerate(alone):
            assert torch.equal(torch.cat([part[step].index for part in parts]), whole.index)
            assert torch.equal(torch.cat([part[step].crops[0] for part in parts]), whole.crops[0])


def test_a_resumed_run_goes_on_at_the_exact_photograph(tmp_path: Path) -> None:
    source = replace_window(open_source(shards_of(tmp_path, [5, 2, 4, 1, 4])), 6)
    whole = batches(source)
    for start in (1, 3, 4, 7):
        rest = batches(replace_window(open_source(tmp_path), 6), start=start)
        assert [batch.index.tolist() for batch in rest] == [batch.index.tolist() for batch in whole[start:]]
        assert all(torch.equal(a.crops[1], b.crops[1]) for a, b in zip(rest, whole[start:], strict=True))


def replace_window(source: ImageSource, images: int) -> ShardSource:
    assert isinstance(source, ShardSource)
    return ShardSource(list(source.sizes), list(source.sizes.values()), window_images=images)


def test_a_url_is_fetched_once_and_kept_in_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOVETAIL_CACHE", str(tmp_path / "cache"))
    folder = shards_of(tmp_path / "far away", [2, 2, 2])
    with serving(folder) as server:
        source = open_source(f"{server.url}/photos-{{000..002}}.tar")
        assert source.num_images == 6
        assert len(server.requests) == 3
        here = open_source(folder)
        for mine, theirs in zip(batches(source), batches(here), strict=True):
            assert torch.equal(mine.crops[0], theirs.crops[0])
        assert len(server.requests) == 3


def test_a_cache_without_room_fetches_again(tmp_path: Path) -> None:
    with serving(shards_of(tmp_path / "far", [2, 2, 2])) as server:
        names = [f"{server.url}/photos-00{number}.tar" for number in range(3)]
        source = ShardSource(names, [2, 2, 2], cache=tmp_path / "cache")
        source._cache = ShardCache(tmp_path / "cache", keep=1)
        for index in (0, 5, 0, 3, 1):
            source.open(index, 3).decode(1)
            assert len(list((tmp_path / "cache").glob("*.tar"))) == 1
        assert not list((tmp_path / "cache").glob("*.tmp"))
        again = pickle.loads(pickle.dumps(source))  # as a worker has it
        assert torch.equal(again.open(4, 3).decode(1), source.open(4, 3).decode(1))


def test_a_shard_that_cannot_be_fetched_has_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "PAUSE_SECONDS", 0.0)
    with serving(tmp_path) as server:
        source = ShardSource([f"{server.url}/missing.tar"], [2], cache=tmp_path / "cache")
        with pytest.raises(UnreadableError, match=r"could not be downloaded in 3 attempts: .*404"):
            source.fetch(0)
        assert server.requests == ["/missing.tar"] * 3
    assert not [path for path in (tmp_path / "cache").iterdir() if path.suffix != ".lock"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DOVETAIL_CACHE", str(tmp_path / "file"))
    with pytest.raises(DovetailError, match=r"cache .*file/shards is not writable \(Not a dir.*DOVETAIL_CACHE"):
        open_source("http://127.0.0.1:9/photos-{0..9}.tar")
    assert open_source(shards_of(tmp_path / "here", [2])).num_images == 2
    source = ShardSource(["http://127.0.0.1:9/photos.tar"], [2])  # a cache that is lost while the run goes on
    with pytest.raises(UnreadableError, match=r"saved to .*file/shards \(DOVETAIL_CACHE\): Not a directory"):
        source.fetch(0)


def test_a_program_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(DovetailError, match="'aws', which downloads s3:// URLs, is not installed"):
        open_source("s3://bucket/photos-{0..9}.tar")
    with pytest.raises(DovetailError, match="gopher:// is unsupported"):
        open_source("gopher://host/photos.tar")


def test_a_url_of_a_file_is_the_file(tmp_path: Path) -> None:
    folder = shards_of(tmp_path / "with space", [2])
    assert open_source(f"file://{folder}/photos-000.tar".replace(" ", "%20")).num_images == 2


def test_shards_are_read_a_window_at_a_time() -> None:
    counts = np.array([5, 3, 0, 7, 2, 9, 1, 4])
    order = ShardOrder(counts, seed=2, epoch=1, window_images=8)[:]
    shard = np.searchsorted(np.cumsum(counts), order, side="right")
    assert Counter(shard.tolist()) == {number: count for number, count in enumerate(counts) if count}
    spans = [np.flatnonzero(shard == number) for number in range(len(counts)) if counts[number]]
    assert max(int(span.max() - span.min()) for span in spans) < 8 + 9  # a window and the shard that ends it


def memory_of(images: int) -> int:
    """Return the most bytes that the order of so many images, and 2,000 steps in mid-epoch, take."""
    per_shard = 1000
    tracemalloc.start()
    source = ShardSource(
        [f"photos-{number:06}.tar" for number in range(images // per_shard)], [per_shard] * (images // per_shard)
    )
    steps = images // 100
    sampler = StepSampler(
        images,
        100,
        seed=0,
        total_steps=2 * steps,
        start_step=steps // 2,
        order_of=source.order,
    )
    for number, batch in enumerate(sampler):
        assert all(source.place(index)[1] < per_shard for _, index in batch)
        if number == 300:
            break
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return most


def test_memory_does_not_grow_with_the_photographs() -> None:
    few, many = memory_of(1000), memory_of(10_000_000)
    # Twenty thousand numbers of a window and ten thousand names of shards; a list of all would be 80 MB.
    assert many - few < 4e6
