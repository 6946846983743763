"""`export --checkpoint`: the weights of a run that was stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import dovetail
from dovetail.cli import run as run_command


@pytest.mark.parametrize("method", ["slotcon", "densecl"])  # which export the teacher and the student
def test_a_checkpoint_exports_what_the_run_would(
    method: str, pretrain: Callable[..., dovetail.Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    pretrain(out=run, method=method, max_steps=6, keep_every_epochs=1)  # an epoch has three steps
    finished = load_file(run / "exported" / "model.safetensors")
    shutil.rmtree(run / "exported")  # as if it had been stopped
    assert run_command(["export", "--run", str(run), "--checkpoint", "last", "--to", str(tmp_path / "a.pt")]) == 0
    assert "after 6 steps" in capsys.readouterr().out
    exported = torch.load(tmp_path / "a.pt", weights_only=True)
    assert exported.keys() == finished.keys()
    assert all(torch.equal(value, finished[name]) for name, value in exported.items())
    first = run / "checkpoints" / "epoch-0001.ckpt"
    dovetail.export(run=run, checkpoint=first, to=tmp_path / "b.safetensors")
    assert "after 3 steps" in capsys.readouterr().out
    earlier = load_file(tmp_path / "b.safetensors")
    assert any(not torch.equal(value, finished[name]) for name, value in earlier.items())
    dovetail.export(run=run, checkpoint="last", to=tmp_path / "e.safetensors", format="encoder")
    assert {f"encoder.{name}" for name in load_file(tmp_path / "e.safetensors")} <= finished.keys()


def test_checkpoints_that_are_not_there(pretrain: Callable[..., dovetail.Run], tmp_path: Path) -> None:
    run = tmp_path / "run"
    pretrain(out=run)
    with pytest.raises(dovetail.RunError, match=r"no checkpoint .*epoch-0099.ckpt; .* contains last.ckpt"):
        dovetail.export(run=run, checkpoint=run / "checkpoints" / "epoch-0099.ckpt", to=tmp_path / "a.pt")
    (run / "checkpoints" / "last.ckpt").write_bytes(b"torn")
    with pytest.raises(dovetail.DovetailError, match=r"last.ckpt"):
        dovetail.export(run=run, checkpoint=run / "checkpoints" / "last.ckpt", to=tmp_path / "a.pt")
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(dovetail.RunError, match="no checkpoint yet"):
        dovetail.export(run=run, checkpoint="last", to=tmp_path / "a.pt")
    with pytest.raises(dovetail.RunError, match="contains no run"):
        dovetail.export(run=tmp_path, checkpoint="last", to=tmp_path / "a.pt")


def test_a_checkpoint_of_an_own_module(pretrain: Callable[..., dovetail.Run], tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Conv2d(8, 8, 4, 4))
    run = tmp_path / "run"
    pretrain(out=run, model=model, encoder="2", method="slotcon")
    finished = load_file(run / "exported" / "model.safetensors")
    dovetail.export(run=run, checkpoint="last", to=tmp_path / "a.safetensors", model=model)
    exported = load_file(tmp_path / "a.safetensors")
    assert all(torch.equal(value, finished[name]) for name, value in exported.items())
    with pytest.raises(dovetail.OptionsError, match="pass the same module"):
        dovetail.export(run=run, checkpoint="last", to=tmp_path / "b.safetensors")
