"""Files that would fill the memory or be waited for without end: each is one skipped image, at once."""

from __future__ import annotations

import io
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dovetail.data.loader import ViewDataset
from dovetail.data.reading import decode
from dovetail.data.reading.archives import open_archive
from dovetail.data.reading.decode import MAX_FILE_BYTES, UnreadableError, open_bytes, open_file, read_file
from dovetail.data.sources import PathSource
from dovetail.errors import DovetailError
from dovetail.views.plan import ViewPlan, ViewSpec
from tests.data.fuzz import png_of

PLAN = ViewPlan(views=(ViewSpec(size_px=16),))


@pytest.fixture(params=["sparse file", "device", "pipe", "folder"])
def hostile(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "x.jpg"
    if request.param == "sparse file":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    elif request.param == "device":
        path.symlink_to("/dev/zero")
    elif request.param == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    return path


def test_a_hostile_file_is_refused_before_it_is_read(hostile: Path) -> None:
    tracemalloc.start()
    try:
        for read in (read_file, lambda path: open_file(path, 3)):
            with pytest.raises(UnreadableError, match=r"not a regular file|directory|limit of 1,073,741,824"):
                read(hostile)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_hostile_file_costs_one_image(hostile: Path, tmp_path: Path) -> None:
    Image.new("RGB", (32, 24), "red").save(tmp_path / "good.png")
    dataset = ViewDataset(PathSource([hostile, tmp_path / "good.png"]), PLAN, seed=0)
    sample = dataset[0, 0]
    assert sample.used == 1
    assert [one.path for one in sample.skipped] == [str(hostile)]


def test_a_pipe_among_shards_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(DovetailError, match="not a regular file"):
        open_archive(tmp_path / "a.tar")


def test_memory_that_is_not_there_is_a_skipped_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.png"):
        Image.new("RGB", (32, 24), "red").save(tmp_path / name)
    original = decode.open_bytes

    def short(content: bytes, channels: int) -> object:
        if not tried:
            tried.append(1)
            raise MemoryError
        return original(content, channels)

    tried: list[int] = []
    monkeypatch.setattr(decode, "open_bytes", short)
    sample = ViewDataset(PathSource([tmp_path / "a.png", tmp_path / "b.png"]), PLAN, seed=0)[0, 0]
    assert sample.used == 1
    assert [one.reason for one in sample.skipped] == ["out of memory"]


def test_pixels_that_grow_out_of_nothing_are_refused() -> None:
    """A PNG of half a megabyte that would become 144 million pixels; one of as many that are there is another case."""
    with pytest.raises(UnreadableError, match=r"would grow from .* bytes, more than 200 times"):
        open_bytes(png_of(12000, 12000, bytes(100_000)), 3)
    decode._check_growth(Image.new("1", (12000, 12000)), 1 << 20)
    with pytest.raises(UnreadableError, match="would grow"):
        decode._check_growth(Image.new("1", (12000, 12000)), 1 << 19)


def test_limits_leave_photographs_alone() -> None:
    """Noise is the largest file of its pixels, a flat picture the smallest: both are read at a usual size."""
    rng = np.random.default_rng(0)
    for pixels in (rng.integers(0, 256, (600, 800, 3), dtype=np.uint8), np.zeros((3000, 4000, 3), np.uint8)):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        assert open_bytes(file.getvalue(), 3).width_px == pixels.shape[1]
        assert len(file.getvalue()) < MAX_FILE_BYTES
