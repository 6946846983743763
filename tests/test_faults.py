"""Faults around a run, through the command line: signals, full disks, folders that vanish, processes that die."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dovetail.errors import DovetailError
from dovetail.train.checkpoints import Checkpoints, read
from dovetail.train.interrupts import signal_name

ROOT = Path(__file__).parents[1]
TINY = (
    *("--model", "timm/test_resnet+fpn(channels=16)", "--image-size", "64", "--batch-size", "4", "--workers", "0"),
    *("--save-every-minutes", "0", "--log-every-steps", "1", "--report-every-minutes", "0", "--precision", "32-true"),
    *("--recipe.hidden", "16", "--recipe.dim", "8", "--recipe.prototypes", "6", "--recipe.decoder-grid", "8"),
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(12):
        Image.fromarray(rng.integers(0, 256, (48, 48, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


STARTED: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def nothing_goes_on_running() -> Iterator[None]:
    """End what a test that failed has left."""
    yield
    while STARTED:
        process = STARTED.pop()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def started(photos: Path, out: Path, *options: str) -> subprocess.Popen[str]:
    """Start `dovetail pretrain` as the leader of a process group of its own."""
    command = [sys.executable, "-m", "dovetail.cli", "pretrain", "--out", str(out), *options]
    if "--resume" not in options:
        command += ["--data", str(photos), *TINY]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    STARTED.append(process)
    return process


def wait_for(path: Path, lines: int, process: subprocess.Popen[str], *, seconds: float = 1500.0) -> None:
    """Wait until the log has so many lines."""
    until = time.monotonic() + seconds
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "devices"), [(signal.SIGTERM, 1), (signal.SIGINT, 1), (signal.SIGTERM, 2)])
def test_a_signal_ends_the_command_with_a_checkpoint_and_a_sentence(
    photos: Path, tmp_path: Path, number: signal.Signals, devices: int
) -> None:
    out = tmp_path / "run"
    process = started(photos, out, "--max-steps", "400", "--accelerator", "cpu", "--devices", str(devices))
    wait_for(out / "metrics.jsonl", 2, process)
    os.killpg(process.pid, number)  # as a terminal does
    shown = process.communicate(timeout=1500)[1].splitlines()[-1]
    assert process.returncode == 128 + number
    assert shown.startswith(f"dovetail: Stopped by {signal_name(number)} after step ")
    assert "the same command with --resume to continue" in shown
    step = int(shown.split("after step ")[1].split()[0])
    assert read(out / "checkpoints" / "last.ckpt")["step"] == step


def state(step: int, size: int = 20_000) -> dict[str, Any]:
    return {"step": step, "weights": torch.full((size,), float(step))}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 512 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], check=False, capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip("no small file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_leaves_the_last_checkpoint_whole(small_disk: Path) -> None:
    kept = Checkpoints(small_disk / "checkpoints")
    kept.save(state(1))
    kept.save(state(2))
    for step in (3, 4):
        with pytest.raises(DovetailError, match=r"checkpoint could not be written .* free disk space"):
            kept.save(state(step, size=200_000))
    assert sorted(path.name for path in kept.folder.iterdir()) == ["last.ckpt", "previous.ckpt"]
    loaded = kept.load()
    assert loaded is not None
    assert loaded["step"] == 2
    kept.save(state(5))
    assert read(kept.last)["step"] == 5


def test_a_limit_on_the_size_of_files_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    """In a process of its own, as such a limit cannot be taken back; it needs no rights, unlike a mount."""
    script = (
        "import resource, signal, sys; from pathlib import Path; import torch\n"
        "from dovetail.errors import DovetailError; from dovetail.train.checkpoints import Checkpoints\n"
        "kept = Checkpoints(Path(sys.argv[1])); kept.save({'step': 1})\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    kept.save({'step': 2, 'weights': torch.zeros(200_000)})\n"
        "except DovetailError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "checkpoint could not be written" in done.stdout
    assert read(tmp_path / "last.ckpt")["step"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


class Vanishing:
    """`torch.save`, after which something happens to the folder."""

    def __init__(self, happens: Callable[[Path], Any]) -> None:
        self.happens = happens

    def __call__(self, value: Any, path: Path) -> None:
        path.write_bytes(b"half of it")
        self.happens(path.parent)


def test_a_folder_that_vanishes_gets_a_sentence_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = Checkpoints(tmp_path / "checkpoints")
    kept.save(state(1))
    aside = tmp_path / "aside"
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", Vanishing(lambda folder: folder.rename(aside)))
        with pytest.raises(DovetailError, match="checkpoint could not be written"):
            kept.save(state(2))
    assert not kept.folder.exists()
    aside.rename(kept.folder)  # the disk is mounted again
    loaded = kept.load()
    assert loaded is not None
    assert loaded["step"] == 1
    kept.clear_leftovers()
    kept.save(state(2))
    assert read(kept.last)["step"] == 2


def test_a_folder_that_is_removed_is_made_again(tmp_path: Path) -> None:
    kept = Checkpoints(tmp_path / "checkpoints")
    kept.save(state(1))
    shutil.rmtree(kept.folder)
    kept.save(state(2))
    assert read(kept.last)["step"] == 2


def test_a_run_killed_before_it_had_a_config_can_start_again(photos: Path, tmp_path: Path) -> None:
    from dovetail.run.folder import LEFTOVERS, check_out

    for name in LEFTOVERS:
        (tmp_path / name).write_text("half")
    assert check_out(tmp_path, overwrite=False, resume=False) == tmp_path
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DovetailError, match="not empty"):
        check_out(tmp_path, overwrite=False, resume=False)


def children(pid: int) -> list[int]:
    """Return the processes that `pid` has started, and theirs."""
    listed = Path(f"/proc/{pid}/task/{pid}/children")
    own = [int(number) for number in listed.read_text().split()] if listed.exists() else []
    return own + [number for child in own for number in children(child)]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
@pytest.mark.parametrize("which", [0, 1])
def test_a_killed_rank_ends_the_other_and_resume_works(photos: Path, tmp_path: Path, which: int) -> None:
    out = tmp_path / "run"
    process = started(photos, out, "--max-steps", "60", "--devices", "2", "--accelerator", "cpu", "--batch-size", "2")
    wait_for(out / "metrics.jsonl", 12, process)
    other = next(pid for pid in children(process.pid) if b"pretrain" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill((process.pid, other)[which], signal.SIGKILL)
    until = time.monotonic() + 1000  # seconds in fact; torch itself gives up after 1,800
    shown = process.communicate(timeout=1000)[1]
    while Path(f"/proc/{other}").exists():
        assert time.monotonic() < until
        time.sleep(0.1)
    if which == 1:
        assert process.returncode not in (0, None)
    assert shown.splitlines()[-1].startswith("dovetail: "), shown
    assert "Another process of this run ended or is unreachable" in shown
    resumed = started(photos, out, "--resume")
    shown = resumed.communicate(timeout=1500)[1]
    assert resumed.returncode == 0, shown
    assert read(out / "checkpoints" / "last.ckpt")["step"] == 60
