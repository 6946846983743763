"""What other systems lack is not needed to import the library, nor to read with it."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from dovetail.data.open import open_source
from dovetail.data.shards.fetch import ShardCache
from tests.data.photos import encoded, smooth
from tests.data.tars import shards_of, tar_of
from tests.loopback import serving

ABSENT = [(signal, name) for name in ("SIGBUS", "SIGCHLD", "SIGUSR1", "SIGKILL")]
ABSENT += [(os, name) for name in ("pread", "fork", "register_at_fork", "sched_getaffinity", "geteuid")]


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what Windows has not."""
    for module, name in ABSENT:
        monkeypatch.delattr(module, name, raising=False)
    for name in ("fcntl", "resource", "pwd"):
        monkeypatch.setitem(sys.modules, name, None)


def anew(name: str) -> ModuleType:
    """Return another copy of a module, imported now."""
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "name", ["reading.watch", "reading.archives", "shards.fetch", "reading.decode", "reading.deadline", "loader"]
)
def test_modules_are_imported_without(without: None, name: str) -> None:
    assert anew(f"dovetail.data.{name}")


def test_workers_are_watched_without(without: None) -> None:
    watch = anew("dovetail.data.reading.watch")
    watch.remove_worker_death_handler()
    assert not watch.asked_to_stop([])
    assert watch.ReadingWatch(0).lost([]) == {}


@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_archives_are_read_without(without: None, tmp_path: Path, kind: str) -> None:
    photos = {f"{seed}.png": encoded(Image.fromarray(smooth(seed=seed)), "PNG") for seed in range(2)}
    path = tmp_path / f"photos.{kind}"
    if kind == "tar":
        tar_of(path, photos)
    else:
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in photos.items():
                archive.writestr(name, content)
    source = open_source(path)
    for index in (1, 0, 1):
        assert source.open(index, 3).decode(1).permute(1, 2, 0).tolist() == smooth(seed=index).tolist()


def test_a_shard_that_several_need_is_fetched_once(tmp_path: Path) -> None:
    with serving(shards_of(tmp_path / "far", [2])) as server, ThreadPoolExecutor(4) as pool:
        name = f"{server.url}/photos-000.tar"
        paths = set(pool.map(lambda _: ShardCache(tmp_path / "cache").path(name), range(4)))
        assert len(paths) == 1
        assert server.requests == ["/photos-000.tar"]
