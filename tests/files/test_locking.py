"""One process at a time writes into a run's folder; what a crash leaves is whole; damaged logs cost nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import dovetail
from dovetail.cli import VERBS
from dovetail.cli import run as run_command
from dovetail.errors import DovetailError
from dovetail.files.durable import write_whole
from dovetail.files.locking import LOCK, in_use
from dovetail.report.history import read_history
from dovetail.run.folder import COPY, read_config

OPTIONS: dict[str, Any] = {
    "model": "timm/test_resnet+fpn(channels=16)",
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
from dovetail.files.locking import in_use
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


RUN, DATA, HELD = "{run}", "{data}", "{held}"
DRAWN = ["--run", RUN, "--images", DATA, "--out", HELD]
MEASURED = ["--run", RUN, "--data", DATA, "--out", HELD]
# Every command that writes, told to write into a folder that another process holds.
WRITES: dict[str, list[list[str]]] = {
    "pretrain": [
        ["--model", "timm/test_resnet+fpn(channels=16)", "--data", DATA, "--out", HELD],
        ["--out", RUN, "--resume"],
        ["--model", "timm/test_resnet+fpn(channels=16)", "--data", DATA, "--out", RUN, "--overwrite"],
    ],
    "try": [["--data", DATA, "--labels", DATA, "--budget", "60s", "--out", HELD]],
    "prepare": [["--data", DATA, "--shards", HELD]],
    "export": [["--run", RUN, "--to", f"{HELD}/model.pt"], ["--run", RUN, "--to", f"{HELD}/model.safetensors"]],
    **{f"evaluate {kind}": [MEASURED, ["--run", RUN, "--data", DATA]] for kind in ("knn", "linear", "dense")},
    **{f"finetune {kind}": [MEASURED, ["--run", RUN, "--data", DATA]] for kind in ("classify", "detect", "segment")},
    "embed": [
        ["--run", RUN, "--data", DATA, "--out", f"{HELD}/e.npy"],
        ["--run", RUN, "--data", DATA, "--out", f"{RUN}/e.npy"],
        ["--run", RUN, "--data", DATA, "--out", "{new}/e.npy", "--page-map", "pca"],
    ],
    **{
        f"visualize {kind}": [DRAWN, ["--run", RUN, "--images", DATA, "--out", RUN]]
        for kind in ("pca", "slots", "attention", "correspondence", "neighbours")
    },
    "predict": [MEASURED],
    "compare": [[RUN, "--out", f"{HELD}/page.html"]],
}
READS = {"show", "methods", "models"}


def test_every_command_writes_or_reads() -> None:
    assert WRITES.keys() | READS == VERBS.keys()
    assert not WRITES.keys() & READS


@pytest.mark.parametrize("verb", WRITES)
def test_a_folder_in_use_is_left_alone_by_every_verb(
    verb: str,
    photos: Path,
    copied: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("dovetail.files.writing.WAIT_S", 0.0)
    (copied / "report.html").write_text("<!-- map -->\n", encoding="utf-8")
    places = {"run": str(copied), "data": str(photos), "held": str(tmp_path / "held"), "new": str(tmp_path / "new")}
    results = [copied / verb.replace(" ", "-")] if verb.startswith(("evaluate", "finetune")) else []
    with ExitStack() as stack:
        for folder in (copied, tmp_path / "held", *results):
            stack.enter_context(held(folder))
        before = contents(copied)
        for given in WRITES[verb]:
            assert run_command([*verb.split(), *(one.format(**places) for one in given)]) == 2
            told = capsys.readouterr().err
            assert re.fullmatch(r"dovetail: Another dovetail process is writing to \S+; wait until .*\.\n", told), told
        assert contents(copied) == before
    assert {path.name for path in (tmp_path / "held").iterdir()} == {LOCK}
    assert not (tmp_path / "new").exists()


def test_a_thread_takes_a_folder_that_it_holds_once_more(tmp_path: Path) -> None:
    with in_use(tmp_path / "out"):
        with in_use(tmp_path / "out"):
            (tmp_path / "out" / "file").touch()
        with ThreadPoolExecutor() as other, pytest.raises(DovetailError, match="Another dovetail process"):
            other.submit(lambda: in_use(tmp_path / "out").__enter__()).result()
    with held(tmp_path / "out"):
        pass


def test_files_can_be_written_into_one_folder_at_the_same_time(finished: Path, tmp_path: Path) -> None:
    def export(name: str) -> Path:
        return dovetail.export(run=finished, to=tmp_path / "weights" / name)

    names = ["a.pt", "b.pt", "c.safetensors"]
    with ThreadPoolExecutor() as pool:
        assert len(list(pool.map(export, names))) == 3
    assert {path.name for path in (tmp_path / "weights").iterdir()} - {LOCK} == set(names)


def test_a_folder_of_the_users_keeps_no_lock(finished: Path, photos: Path, tmp_path: Path) -> None:
    dovetail.export(run=finished, to=tmp_path / "model.pt")
    assert run_command(["embed", "--run", str(finished), "--data", str(photos), "--out", str(tmp_path / "e.npy")]) == 0
    assert run_command(["prepare", "--data", str(photos), "--shards", str(tmp_path / "shards")]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"model.pt", "e.npy", "e.paths.json", "shards"}
    assert LOCK not in {path.name for path in (tmp_path / "shards").iterdir()}


def test_what_is_refused_leaves_no_folder(photos: Path, tmp_path: Path) -> None:
    for verb, option in (("pca", "images"), ("neighbours", "images")):
        arguments = ["--run", str(tmp_path / "nowhere"), f"--{option}", str(photos), "--out", str(tmp_path / "out")]
        assert run_command(["visualize", verb, *arguments]) == 2
    assert not (tmp_path / "out").exists()


def test_a_lock_of_a_killed_process_is_taken_over_where_the_system_has_no_locks(tmp_path: Path) -> None:
    held_without_flock = "import errno, fcntl\n\n\ndef flock(*_):\n    raise OSError(errno.ENOSYS, 'no locks')\n\n\n"
    held_without_flock += f"fcntl.flock = flock\n{HOLDER}"
    command = [sys.executable, "-W", "error", "-c", held_without_flock, str(tmp_path / "run")]
    for _ in range(2):
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "held\n"
            second = subprocess.run(command, input="", capture_output=True, text=True)
            assert "Another dovetail process is writing to" in second.stderr
            process.kill()
    assert (tmp_path / "run" / LOCK).exists()


def test_what_is_written_into_a_run_is_not_its_data(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(photos, tmp_path / "data"))
    run = data / "runs" / "first"
    dovetail.pretrain(data=data, out=run, max_steps=2, **OPTIONS)
    assert run_command(["embed", "--run", str(run), "--data", str(photos), "--out", str(run / "e.npy")]) == 0
    capsys.readouterr()
    assert run_command(["pretrain", "--out", str(run), "--resume"]) == 0
    assert "Skipped 1 folder of pre-training runs." in capsys.readouterr().out
    (data / "more.png").write_bytes((data / "0.png").read_bytes())
    assert run_command(["pretrain", "--out", str(run), "--resume"]) == 2
    told = capsys.readouterr().err
    assert "expected 8 images, got 9" in told
    assert "overwrite" not in told


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
    with pytest.raises(DovetailError, match=f"contains no options; restore it from .*{COPY}"):
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


DAMAGES = (b"\xff\xfe", b"\x00\x80", b'{"step": "\xff"}\n', b"[" * 100_000 + b"\n")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_byte_in_the_log_costs_no_run(copied: Path, damage: bytes) -> None:
    metrics = copied / "metrics.jsonl"
    metrics.write_bytes(damage + b"\n" + metrics.read_bytes())
    assert [reading["step"] for reading in read_history(copied).readings] == [1, 2]
    config = yaml.safe_load((copied / "config.yaml").read_text()) | {"max_steps": 2}
    (copied / "config.yaml").write_text(yaml.safe_dump(config))
    assert dovetail.pretrain(out=copied, resume=True).finished


def test_a_run_without_checkpoints_begins_its_damaged_log_anew(copied: Path) -> None:
    metrics = copied / "metrics.jsonl"
    metrics.write_bytes(b"".join(damage + b"\n" for damage in DAMAGES) + metrics.read_bytes())
    shutil.rmtree(copied / "checkpoints")
    assert dovetail.pretrain(out=copied, resume=True).finished
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
