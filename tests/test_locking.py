"""One process at a time writes into a run's folder; what a crash leaves is whole; damaged logs cost nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import dovetail
from dovetail.durable import write_whole
from dovetail.errors import DovetailError
from dovetail.locking import LOCK, in_use
from dovetail.pretraining import COPY, read_config
from dovetail.report.history import read_history
from tests.transfer.pictures import class_folder

OPTIONS: dict[str, Any] = {
    "model": "timm/test_resnet+fpn",
    "image_size": 64,
    "batch_size": 4,
    "workers": 0,
    "precision": "32-true",
    "accelerator": "cpu",
    "report_every_minutes": 0.0,
    "log_every_steps": 1,
    "recipe": {"hidden": 16, "dim": 8, "prototypes": 6, "decoder_grid": 8},
}
HOLDER = """
import sys
from pathlib import Path
from dovetail.locking import in_use
with in_use(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(8):
        Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def finished(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests change copies of it."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    dovetail.pretrain(data=photos, out=out, max_steps=2, **OPTIONS)
    return out


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@contextmanager
def held(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Let another process hold a folder."""
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_in_use_is_left_alone_by_every_verb(photos: Path, copied: Path, tmp_path: Path) -> None:
    labelled = class_folder(tmp_path / "labelled")
    fast: dict[str, Any] = {"accelerator": "cpu", "workers": 0, "image_size": 64}
    new = tmp_path / "new"
    with held(copied), held(new):
        before = contents(copied)
        for options in ({"overwrite": True, "data": photos, "max_steps": 1, **OPTIONS}, {"resume": True}):
            with pytest.raises(DovetailError, match="Another process of dovetail writes into"):
                dovetail.pretrain(out=copied, **options)
        with pytest.raises(DovetailError, match="Another process"):
            dovetail.pretrain(out=new, data=photos, max_steps=1, **OPTIONS)
        with pytest.raises(DovetailError, match="Another process"):
            dovetail.finetune_classify(run=copied, data=labelled, out=new, steps=1, **fast)
        with pytest.raises(DovetailError, match="Another process"):
            dovetail.evaluate_knn(run=copied, data=labelled, out=new, **fast)
        assert contents(copied) == before
    assert {path.name for path in new.iterdir()} == {LOCK}


def test_a_killed_process_holds_nothing(tmp_path: Path, photos: Path) -> None:
    with held(tmp_path / "run") as process:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with in_use(tmp_path / "run"):
            pass
    assert dovetail.pretrain(out=tmp_path / "run", data=photos, max_steps=1, **OPTIONS).finished


def test_a_system_without_locks_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(*arguments: Any, **options: Any) -> None:
        raise NotImplementedError("no locks here")

    monkeypatch.setattr("filelock.FileLock.acquire", unsupported)
    with in_use(tmp_path):
        assert "cannot be locked (no locks here)" in caplog.text


def test_an_emptied_config_gives_way_to_its_copy(copied: Path) -> None:
    whole = read_config(copied)
    (copied / "config.yaml").write_bytes(b"")
    assert read_config(copied) == whole
    assert dovetail.pretrain(out=copied, resume=True).finished
    (copied / "config.yaml").write_text("# nothing\n")
    with pytest.raises(DovetailError, match=f"holds no options; put back the run's own config.yaml.*{COPY}"):
        dovetail.pretrain(out=copied, resume=True)


def test_a_file_is_old_or_new_whenever_writing_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_whole(tmp_path / "file", "old")
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:

            def failing(*arguments: Any, **options: Any) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr(os, name, failing)
            with pytest.raises(OSError, match="No space"):
                write_whole(tmp_path / "file", "new")
        assert (tmp_path / "file").read_text() == "old"
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
    write_whole(tmp_path / "file", "new")
    assert (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize("damage", [b"\xff\xfe", b"\x00\x80", b'{"step": "\xff"}\n', b"[" * 100_000 + b"\n"])
def test_a_damaged_byte_in_the_log_costs_no_run(copied: Path, damage: bytes) -> None:
    metrics = copied / "metrics.jsonl"
    metrics.write_bytes(damage + b"\n" + metrics.read_bytes())
    assert [reading["step"] for reading in read_history(copied).readings] == [1, 2]
    config = yaml.safe_load((copied / "config.yaml").read_text()) | {"max_steps": 2}
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    assert dovetail.pretrain(out=copied, resume=True).finished
    shutil.rmtree(copied / "checkpoints")
    assert dovetail.pretrain(out=copied, resume=True).finished
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
