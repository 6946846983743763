"""Two processes with half the batch each train every method of the table as one process with the whole batch does."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dovetail.recipes.table import examples
from tests.train.ranks import STEPS, train

ROOT = Path(__file__).parents[2]
QUICK = ("decon-sl", "zerocl", "adclr-ibot")
METHODS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in examples()]


class Pair:
    """Two processes that know each other and train one method after the other."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.processes: list[subprocess.Popen[str]] = []

    def train(self, method: str, folder: str = "", *, seconds: float = 250) -> Path:
        """Return the folder of a run on both; fail with what they said if one does not come to its end."""
        folder = folder or method
        if not self.processes:
            self.start()
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(f"{method} {folder}\n")
            process.stdin.flush()
        # A process that waits for one that has failed would wait for half an hour.
        timer = threading.Timer(seconds, self.stop)
        timer.start()
        try:
            answers = [self.answer(process) for process in self.processes]
        finally:
            timer.cancel()
        if answers != [f"done {folder}"] * 2:
            self.stop()
            said = "\n".join((self.out / f"rank{rank}.txt").read_text()[-3000:] for rank in (0, 1))
            pytest.fail(f"{method} on two processes: {said}")
        return self.out / folder

    def answer(self, process: subprocess.Popen[str]) -> str:
        """Return the next answer of a process; end the other one where it has none."""
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("done "):
                return line.strip()
        self.stop()
        return ""

    def start(self) -> None:
        """Start both."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        common = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "TORCHELASTIC_RUN_ID": "test",
            "OMP_NUM_THREADS": "1",
        }
        for rank in (0, 1):
            with (self.out / f"rank{rank}.txt").open("w") as said:
                process = subprocess.Popen(
                    [sys.executable, "-m", "tests.train.ranks", str(self.out)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=said,
                    text=True,
                    cwd=ROOT,
                    env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank), "GROUP_RANK": "0"},
                )
            self.processes.append(process)

    def stop(self) -> None:
        """End both; the next run starts new ones."""
        processes, self.processes = self.processes, []
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    both = Pair(tmp_path_factory.mktemp("pair"))
    yield both
    both.stop()


@pytest.mark.parametrize("method", METHODS)
def test_two_processes_train_like_one(method: str, pair: Pair, tmp_path: Path) -> None:
    two = pair.train(method)
    train(method, tmp_path, devices=1)
    losses = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (tmp_path, two)
    ]
    for alone, together in zip(*losses, strict=True):
        assert together["parts"] == pytest.approx(alone["parts"], rel=1e-5, abs=1e-6)
        assert together["grad_norm"] == pytest.approx(alone["grad_norm"], rel=1e-5)
    assert len(losses[0]) == STEPS
    assert_alike(tmp_path, two)


def assert_alike(one: Path, other: Path) -> None:
    """Assert that two runs ended in the same weights, queues and centres."""
    expected, found = (torch.load(folder / "checkpoints" / "last.ckpt")["learner"] for folder in (one, other))
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-6, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}"
        )


def begun(run: Path, out: Path) -> Path:
    """Return the folder `out` with a run that was stopped after two steps of `run`."""
    (out / "checkpoints").mkdir(parents=True)
    shutil.copy(run / "checkpoints" / "epoch-0002.ckpt", out / "checkpoints" / "last.ckpt")
    return out


@pytest.mark.parametrize("method", ["decon-sl", pytest.param("densecl", marks=pytest.mark.slow)])
def test_a_run_goes_on_with_more_or_fewer_processes(method: str, pair: Pair, tmp_path: Path) -> None:
    train(method, tmp_path / "one", devices=1)
    begun(tmp_path / "one", pair.out / f"{method}-grown")
    grown = pair.train(method, f"{method}-grown")
    assert_alike(tmp_path / "one", grown)
    shrunk = begun(pair.train(method, f"{method}-whole"), tmp_path / "shrunk")
    train(method, shrunk, devices=1)
    assert_alike(tmp_path / "one", shrunk)
