"""A sharded run from the command line: losses as those of DDP, whole weights at the end, a page, one sentence."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

import dovetail
from dovetail.report.history import read_history
from dovetail.train.checkpoints import Checkpoints
from dovetail.train.overseer import AtTheEnd
from tests.data.photos import folder_of
from tests.downstream.pictures import class_folder

TINY = (
    *("--model", "timm/test_vit", "--method", "adclr-dino", "--epochs", "2", "--batch-size", "2", "--accumulate", "2"),
    *("--image-size", "64", "--accelerator", "cpu", "--precision", "32-true", "--lr", "0.001", "--drop-path", "0.1"),
    *("--checkpoint-blocks", "--log-every-steps", "1", "--workers", "1", "--recipe.hidden", "16"),
    *("--recipe.prototypes", "32", "--recipe.bottleneck", "8", "--recipe.local-size", "32", "--recipe.queries", "3"),
)


def on_two(*command: str) -> subprocess.CompletedProcess[str]:
    """Run `dovetail pretrain` on two processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launched = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(port)]
    launched += ["-m", "dovetail.cli", "pretrain", "--devices", "2", *command]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(launched, check=False, env=environment, timeout=1500, capture_output=True, text=True)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_a_sharded_run_from_the_command_line(tmp_path: Path) -> None:
    """With accumulated passes, stochastic depth, blocks computed again, and query tokens; kNN leaves DDP as it is."""
    folder_of(tmp_path / "photos", 17)
    knn = ("--knn-data", str(class_folder(tmp_path / "labelled")), "--knn-readings", "2")
    for strategy, more in (("ddp", knn), ("fsdp", ())):
        out = tmp_path / strategy
        done = on_two("--data", str(tmp_path / "photos"), "--out", str(out), "--strategy", strategy, *more, *TINY)
        assert done.returncode == 0, done.stderr[-3000:]
    assert len(losses(tmp_path / "ddp")) == 4
    assert read_history(tmp_path / "ddp").number("knn").steps == (2, 4)
    assert losses(tmp_path / "fsdp") == pytest.approx(losses(tmp_path / "ddp"), rel=1e-5)
    assert (tmp_path / "fsdp" / "checkpoints" / "last.ckpt").is_dir()
    models = [dovetail.load(tmp_path / strategy).state_dict() for strategy in ("ddp", "fsdp")]  # strictly
    for name, value in models[0].items():
        torch.testing.assert_close(models[1][name], value, rtol=1e-4, atol=1e-5, msg=name)
    state = Checkpoints(tmp_path / "fsdp" / "checkpoints").load()
    assert state is not None
    for name, value in models[1].items():
        assert torch.equal(value, state["learner"][f"teacher.network.model.{name}"])
    assert "finished" in (tmp_path / "fsdp" / "report.html").read_text(encoding="utf-8")
    shutil.rmtree(tmp_path / "fsdp" / "exported")  # as when the run was killed before it could write them
    done = on_two("--out", str(tmp_path / "fsdp"), "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    for name, value in dovetail.load(tmp_path / "fsdp").state_dict().items():
        assert torch.equal(value, models[1][name])


def test_callbacks_of_a_sharded_run_see_its_end_alone() -> None:
    seen = []

    class Witness(Callback):
        def on_train_batch_end(self, *arguments: object) -> None:
            seen.append("batch")

        def on_exception(self, *arguments: object) -> None:
            seen.append("exception")

        def on_train_end(self, *arguments: object) -> None:
            seen.append("end")

    at_the_end = AtTheEnd([Witness(), Witness()])
    at_the_end.on_train_batch_end(None, None, None, None, 0)  # type: ignore[arg-type]
    at_the_end.on_exception(None, None, RuntimeError())  # type: ignore[arg-type]
    at_the_end.on_train_end(None, None)  # type: ignore[arg-type]
    assert seen == ["end", "end"]
