"""Checkpoints: whole or absent, whatever happens to the disk."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from dovetail.errors import DovetailError
from dovetail.train import checksummed
from dovetail.train.checkpoints import Checkpoints, read
from dovetail.train.checksummed import is_whole


def state(step: int) -> dict[str, Any]:
    return {"step": step, "learner": {"weight": torch.full((300,), float(step))}}


@pytest.fixture
def kept(tmp_path: Path) -> Checkpoints:
    """Checkpoints with two written."""
    kept = Checkpoints(tmp_path / "checkpoints")
    kept.save(state(1))
    kept.save(state(2), keep_as_epoch=7)
    return kept


def names(kept: Checkpoints) -> set[str]:
    return {path.name for path in kept.folder.iterdir()}


def test_the_newest_is_loaded_and_the_one_before_is_kept(kept: Checkpoints) -> None:
    assert names(kept) == {"last.ckpt", "previous.ckpt", "epoch-0007.ckpt"}
    loaded = kept.load()
    assert loaded is not None
    assert loaded["step"] == 2
    assert torch.equal(loaded["learner"]["weight"], state(2)["learner"]["weight"])
    assert read(kept.folder / "previous.ckpt")["step"] == 1
    assert read(kept.folder / "epoch-0007.ckpt")["step"] == 2
    kept.save(state(3))
    assert read(kept.folder / "epoch-0007.ckpt")["step"] == 2


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert Checkpoints(tmp_path / "none").load() is None


def test_torch_reads_a_checkpoint_as_any_other_file(kept: Checkpoints) -> None:
    assert torch.load(kept.last, weights_only=True)["step"] == 2


@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "empty", "text", "grown"])
def test_a_damaged_last_falls_back_to_the_previous(
    kept: Checkpoints, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = bytearray(kept.last.read_bytes())
    if damage == "truncated":
        data = data[: len(data) // 2]
    elif damage == "flipped bit":
        data[len(data) // 2] ^= 1
    elif damage == "grown":
        data += b"x"
    else:
        data = bytearray(b"not a checkpoint\n" * 100 if damage == "text" else b"")
    # A new file: the others are links to the old one.
    kept.last.unlink()
    kept.last.write_bytes(data)
    assert not is_whole(kept.last)
    loaded = kept.load()
    assert loaded is not None
    assert loaded["step"] == 1
    assert "damaged" in caplog.text


def test_a_kill_between_the_renames_loses_nothing(kept: Checkpoints) -> None:
    kept.last.unlink()
    loaded = kept.load()
    assert loaded is not None
    assert loaded["step"] == 1


def test_nothing_whole_is_an_error(kept: Checkpoints) -> None:
    for name in ("last.ckpt", "previous.ckpt"):
        (kept.folder / name).unlink()
        (kept.folder / name).write_bytes(b"0" * 500)
    with pytest.raises(DovetailError, match="--overwrite"):
        kept.load()


def test_a_kill_or_a_full_disk_while_writing_leaves_the_last_one(
    kept: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(value: Any, path: Path) -> None:
        path.write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checksummed.torch, "save", full)
    with pytest.raises(DovetailError, match="No space left"):
        kept.save(state(3))
    loaded = kept.load()
    assert loaded is not None
    assert loaded["step"] == 2
    assert names(kept) == {"last.ckpt", "previous.ckpt", "epoch-0007.ckpt"}


def test_leftovers_of_a_kill_are_cleared(kept: Checkpoints) -> None:
    (kept.folder / "last.ckpt.123.tmp").write_bytes(b"half")
    kept.clear_leftovers()
    assert names(kept) == {"last.ckpt", "previous.ckpt", "epoch-0007.ckpt"}


def test_a_file_system_without_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*paths: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    kept = Checkpoints(tmp_path)
    kept.save(state(1))
    kept.save(state(2), keep_as_epoch=1)
    assert [read(tmp_path / name)["step"] for name in ("last.ckpt", "previous.ckpt", "epoch-0001.ckpt")] == [2, 1, 2]


class Code:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["DOVETAIL_TEST_FOLDER"],)


def test_a_checkpoint_with_code_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = tmp_path / "made"
    monkeypatch.setenv("DOVETAIL_TEST_FOLDER", str(made))
    path = tmp_path / "last.ckpt"
    torch.save({"step": Code()}, path)
    checksummed.seal(path)
    assert is_whole(path)
    with pytest.raises(DovetailError, match="cannot be read"):
        read(path)
    assert not made.exists()
    pickle.loads(pickle.dumps(Code()))
    assert made.exists()
