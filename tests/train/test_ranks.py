"""Two processes with half the batch each train every method of the table as one process with the whole batch does."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dovetail.recipes.table import examples
from tests.train.alike import assert_alike
from tests.train.ranks import STEPS, train

ROOT = Path(__file__).parents[2]
QUICK = ("decon-sl", "decon-ml", "zerocl", "adclr-ibot")
METHODS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in examples()]
SAMPLED = "decon-sl-sampled"
# Runs on both that more than one test looks at.
SHARED = ("decon-sl-by-ddp", "adclr-ibot-by-fsdp")


class Together:
    """Processes that know each other and train one method after the other."""

    def __init__(self, out: Path, count: int = 2) -> None:
        self.out = out
        self.count = count
        self.processes: list[subprocess.Popen[str]] = []

    def train(self, method: str, folder: str = "", *, strategy: str = "ddp", seconds: float = 1500) -> Path:
        """Return the folder of a run on all; fail with what they said if one does not come to its end."""
        folder = folder or method
        if not self.processes:
            self.start()
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(f"{method} {folder} {strategy}\n")
            process.stdin.flush()
        # A process that waits for one that has failed would wait for half an hour.
        timer = threading.Timer(seconds, self.stop)
        timer.start()
        try:
            answers = [self.answer(process) for process in self.processes]
        finally:
            timer.cancel()
        if answers != [f"done {folder}"] * self.count:
            self.stop()
            said = "\n".join((self.out / f"rank{rank}.txt").read_text()[-3000:] for rank in range(self.count))
            pytest.fail(f"{method} on {self.count} processes: {said}")
        return self.out / folder

    def answer(self, process: subprocess.Popen[str]) -> str:
        """Return the next answer of a process; end the others where it has none."""
        assert process.stdout is not None
        if process.stdout.closed:  # all were ended since one had none
            return ""
        for line in process.stdout:
            if line.startswith("done "):
                return line.strip()
        self.stop()
        return ""

    def start(self) -> None:
        """Start all."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(self.count),
            "LOCAL_WORLD_SIZE": str(self.count),
            "TORCHELASTIC_RUN_ID": "test",
            "OMP_NUM_THREADS": "1",
        }
        for rank in range(self.count):
            with (self.out / f"rank{rank}.txt").open("w") as said:
                process = subprocess.Popen(
                    [sys.executable, "-m", "tests.train.ranks", str(self.out)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    text=True,
                    cwd=ROOT,
                    # With other hashes in each process, sets of names have other orders, as they have by default.
                    env=common
                    | {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0", "PYTHONHASHSEED": str(rank)},
                )
            self.processes.append(process)

    def stop(self) -> None:
        """End all; the next run starts new ones."""
        processes, self.processes = self.processes, []
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Together]:
    """Two processes, started once for all tests."""
    both = Together(tmp_path_factory.mktemp("both"))
    yield both
    both.stop()


@pytest.fixture
def pair(both: Together) -> Iterator[Together]:
    """Both of them; what they wrote is gone after the test, as every method's checkpoints are large together."""
    yield both
    for path in both.out.iterdir():
        if path.is_dir() and path.name not in SHARED:
            shutil.rmtree(path)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Path]]:
    """Folders of runs on one process, trained once for all tests that compare with them."""
    out = tmp_path_factory.mktemp("alone")

    def folder(method: str) -> Path:
        path = out / method.replace("/", "-")
        if not path.exists():
            train(method, path, devices=1)
        return path

    yield folder
    shutil.rmtree(out)


def together(pair: Together, method: str, *, strategy: str = "ddp") -> Path:
    """Return the folder of a run on both from its beginning; those of `SHARED` are trained once for all tests."""
    folder = f"{method}-by-{strategy}"
    return pair.out / folder if (pair.out / folder).exists() else pair.train(method, folder, strategy=strategy)


@pytest.mark.parametrize("method", [*METHODS, SAMPLED])
def test_two_processes_train_like_one(method: str, pair: Together, alone: Callable[[str], Path]) -> None:
    two = together(pair, method)
    assert_same_log(alone(method), two)
    assert_alike(alone(method), two, method)


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp"])
def test_processes_freeze_the_encoder_as_one_does(strategy: str, pair: Together, alone: Callable[[str], Path]) -> None:
    two = pair.train("decon-sl:2", f"frozen-{strategy}", strategy=strategy)
    assert_same_log(alone("decon-sl:2"), two)
    assert_alike(alone("decon-sl:2"), two, "decon-sl")


@pytest.mark.parametrize("method", [SAMPLED, pytest.param("decon-sl", marks=pytest.mark.slow)])
@pytest.mark.parametrize("apart", [8, pytest.param(5, marks=pytest.mark.slow)])
def test_crops_that_do_not_overlap_are_left_out_on_two_processes_as_on_one(
    apart: int, method: str, pair: Together, tmp_path: Path
) -> None:
    """Of all images, or of the first process's and one of the second's: the group loss is a mean over the others."""
    two = pair.train(f"{method}/{apart}", f"{method}-{apart}-apart")
    train(f"{method}/{apart}", tmp_path, devices=1)
    assert_same_log(tmp_path, two)
    assert_alike(tmp_path, two, method)
    for line in lines(two):
        groups = [value for name, value in line["parts"].items() if name.endswith("/group")]
        assert len(groups) == 2  # the encoder's and the decoder's
        assert all((value == 0) == (apart == 8) for value in groups)
        assert line["grad_norm"] > 0  # the slots still learn


def begun(run: Path, out: Path) -> Path:
    """Return the folder `out` with a run that was stopped after two steps of `run`."""
    (out / "checkpoints").mkdir(parents=True)
    kept, last = run / "checkpoints" / "epoch-0002.ckpt", out / "checkpoints" / "last.ckpt"
    if kept.is_dir():
        shutil.copytree(kept, last)
    else:
        shutil.copy(kept, last)
    return out


def lines(run: Path) -> list[dict[str, Any]]:
    """Return a run's log."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_log(one: Path, other: Path, *, steps: int = STEPS) -> None:
    """Assert that the last `steps` steps of two runs gave the same losses and gradients."""
    assert len(lines(one)) == STEPS
    for expected, found in zip(lines(one)[-steps:], lines(other), strict=True):
        assert found["step"] == expected["step"]
        assert found["parts"] == pytest.approx(expected["parts"], rel=1e-5, abs=1e-6)
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-5)


@pytest.mark.parametrize("method", ["decon-sl", pytest.param("densecl", marks=pytest.mark.slow)])
def test_a_run_goes_on_with_more_or_fewer_processes(
    method: str, pair: Together, alone: Callable[[str], Path], tmp_path: Path
) -> None:
    begun(alone(method), pair.out / f"{method}-grown")
    grown = pair.train(method, f"{method}-grown")
    assert_alike(alone(method), grown, method)
    shrunk = begun(together(pair, method), tmp_path / "shrunk")
    train(method, shrunk, devices=1)
    assert_alike(alone(method), shrunk, method)


# LARS with trust ratios, AdamW with clipping of each gradient, and what no recipe has by itself.
OPTIMISERS = ("dino@lars", "dino@lamb", "dino@sgd")


@pytest.mark.parametrize(
    "method",
    [
        name if name == "adclr-ibot" else pytest.param(name, marks=pytest.mark.slow)
        for name in (*examples(), *OPTIMISERS)
    ],
)
def test_sharded_weights_train_like_whole_ones(method: str, pair: Together, alone: Callable[[str], Path]) -> None:
    parts = together(pair, method, strategy="fsdp")
    assert_same_log(alone(method), parts)
    assert_alike(alone(method), parts, method)
    assert sorted(path.name for path in (parts / "checkpoints" / "last.ckpt").iterdir()) == [
        *(".metadata", "__0_0.distcp", "__1_0.distcp", "state.pt")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dino", "adclr-dino", "slotcon"])
def test_sharded_weights_train_as_those_of_ddp(method: str, pair: Together) -> None:
    parts, whole = (together(pair, method, strategy=name) for name in ("fsdp", "ddp"))
    assert_same_log(whole, parts)
    assert_alike(whole, parts, method)


@pytest.mark.parametrize(
    "method", ["adclr-ibot", *(pytest.param(m, marks=pytest.mark.slow) for m in ("dino", "decon-sl"))]
)
def test_pieces_go_on_whole_and_whole_weights_in_pieces(
    method: str, pair: Together, alone: Callable[[str], Path], tmp_path: Path
) -> None:
    begun(alone(method), pair.out / f"{method}-cut")
    cut = pair.train(method, f"{method}-cut", strategy="fsdp")
    joined = begun(together(pair, method, strategy="fsdp"), tmp_path / "joined")
    train(method, joined, devices=1)
    for run in (cut, joined):
        assert_same_log(alone(method), run, steps=STEPS - 2)
        assert_alike(alone(method), run, method)


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 4])
def test_pieces_of_two_processes_go_on_in_one_or_four(count: int, pair: Together, tmp_path: Path) -> None:
    two = together(pair, "adclr-ibot", strategy="fsdp")
    others = Together(tmp_path, count)
    try:
        begun(two, tmp_path / "on")
        on = others.train("adclr-ibot", "on", strategy="fsdp")
    finally:
        others.stop()
    assert_same_log(two, on, steps=STEPS - 2)
    assert_alike(two, on, "adclr-ibot")
