"""Checkpoints in pieces: whole or absent, as those in one file; and read without running what they may carry."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.metadata import BytesStorageMetadata
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from dovetail.errors import DovetailError
from dovetail.train import sharded_checkpoints
from dovetail.train.checkpoints import Checkpoints, read
from dovetail.train.parts import laid_out_as, norms_of, own_part


@pytest.fixture(scope="module")
def mesh() -> Iterator[DeviceMesh]:
    """A process that knows itself alone; what several do is in `test_ranks.py`."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def cut(value: torch.Tensor, mesh: DeviceMesh) -> DTensor:
    return distribute_tensor(value, mesh, [Shard(0)])


def state(step: int, mesh: DeviceMesh) -> dict[str, Any]:
    weight = cut(torch.full((6, 50), float(step)), mesh)
    moments = {0: {"exp_avg": cut(torch.arange(300.0).view(6, 50) + step, mesh), "step": torch.tensor(float(step))}}
    groups = [{"lr": 0.1, "params": [0]}]
    return {
        "step": step,
        "learner": {"weight": weight, "queue": torch.full((3,), float(step))},
        "optimiser": {"state": moments, "param_groups": groups},
    }


@pytest.fixture
def kept(tmp_path: Path, mesh: DeviceMesh) -> Checkpoints:
    """Checkpoints with two written."""
    kept = Checkpoints(tmp_path / "checkpoints")
    kept.save_pieces(state(1, mesh))
    kept.save_pieces(state(2, mesh), keep_as_epoch=7)
    return kept


def names(kept: Checkpoints) -> set[str]:
    return {path.name for path in kept.folder.iterdir()}


def test_pieces_are_put_together(kept: Checkpoints) -> None:
    assert names(kept) == {"last.ckpt", "previous.ckpt", "epoch-0007.ckpt"}
    for name, step in (("last.ckpt", 2), ("previous.ckpt", 1), ("epoch-0007.ckpt", 2)):
        found = read(kept.folder / name)
        assert found["step"] == step
        assert torch.equal(found["learner"]["weight"], torch.full((6, 50), float(step)))
        assert torch.equal(found["learner"]["queue"], torch.full((3,), float(step)))
        moments = found["optimiser"]["state"][0]
        assert torch.equal(moments["exp_avg"], torch.arange(300.0).view(6, 50) + step)
        assert float(moments["step"]) == step
        assert not isinstance(found["learner"]["weight"], DTensor)


def test_kept_pieces_outlast_later_ones(kept: Checkpoints, mesh: DeviceMesh) -> None:
    kept.save_pieces(state(3, mesh))
    kept.save_pieces(state(4, mesh), keep_as_epoch=8)
    steps = {name: read(kept.folder / name)["step"] for name in sorted(names(kept))}
    assert steps == {"epoch-0007.ckpt": 2, "epoch-0008.ckpt": 4, "last.ckpt": 4, "previous.ckpt": 3}


def test_a_file_and_a_folder_take_each_others_place(kept: Checkpoints, mesh: DeviceMesh) -> None:
    whole = {"step": 3, "learner": {}, "optimiser": {"state": {}, "param_groups": []}}
    for step, write in enumerate((kept.save, kept.save, kept.save_pieces, kept.save_pieces, kept.save), start=3):
        write(state(step, mesh) if write == kept.save_pieces else {**whole, "step": step}, keep_as_epoch=7)
        steps = {name: read(kept.folder / name)["step"] for name in names(kept)}
        assert steps == {"last.ckpt": step, "previous.ckpt": step - 1, "epoch-0007.ckpt": step}


@pytest.mark.parametrize("file", [".metadata", "__0_0.distcp", "state.pt"])
@pytest.mark.parametrize("damage", ["truncated", "flipped bit", "missing"])
def test_a_damaged_last_falls_back_to_the_previous(
    kept: Checkpoints, file: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = kept.last / file
    data = bytearray(path.read_bytes())
    path.unlink()  # the kept one is a link to the same file
    if damage == "truncated":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "flipped bit":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    loaded = kept.load()
    assert loaded is not None
    assert loaded["step"] == 1
    assert "an older one is needed" in caplog.text


def test_a_kill_between_the_renames_loses_nothing(kept: Checkpoints, mesh: DeviceMesh) -> None:
    shutil.rmtree(kept.last)
    loaded = kept.load()
    assert loaded is not None
    assert loaded["step"] == 1
    kept.save_pieces(state(5, mesh))
    assert read(kept.last)["step"] == 5


def test_a_kill_or_a_full_disk_while_writing_leaves_the_last_one(
    kept: Checkpoints, mesh: DeviceMesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(sharded_checkpoints.PieceWriter, "write_data", full)
        with pytest.raises(DovetailError, match="No space left"):
            kept.save_pieces(state(3, mesh))
    with monkeypatch.context() as patch:
        patch.setattr(sharded_checkpoints, "write_sealed", full)
        with pytest.raises(DovetailError, match="No space left"):
            kept.save_pieces(state(3, mesh))
    assert names(kept) == {"last.ckpt", "previous.ckpt", "epoch-0007.ckpt"}
    assert read(kept.last)["step"] == 2
    (kept.folder / "last.ckpt.pieces.tmp").mkdir()
    kept.clear_leftovers()
    assert names(kept) == {"last.ckpt", "previous.ckpt", "epoch-0007.ckpt"}


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __reduce__(self) -> Any:
        return os.mkdir, (self.folder,)


def rewrite_index(folder: Path, index: Any) -> None:
    """Put another index into a checkpoint, as an attacker would: with the checksum that fits."""
    (folder / ".metadata").unlink()
    (folder / ".metadata").write_bytes(pickle.dumps(index))
    values = sharded_checkpoints.read_sealed(folder / "state.pt")
    size = (folder / ".metadata").stat().st_size
    values["files"][".metadata"] = [size, sharded_checkpoints.digest_of(folder / ".metadata")]
    (folder / "state.pt").unlink()
    sharded_checkpoints.write_sealed(values, folder / "state.pt")


def test_an_index_with_code_runs_nothing(kept: Checkpoints, tmp_path: Path) -> None:
    made = tmp_path / "made"
    rewrite_index(kept.last, Code(str(made)))
    with pytest.raises(DovetailError, match="mkdir is not allowed in an index"):
        read(kept.last)
    assert not made.exists()
    pickle.loads(pickle.dumps(Code(str(made))))
    assert made.exists()


def test_an_index_reads_tensors_of_its_folder_alone(kept: Checkpoints) -> None:
    index = sharded_checkpoints.SafeReader(kept.last).read_metadata()
    index.state_dict_metadata["learner/weight"] = BytesStorageMetadata()
    with pytest.raises(pickle.UnpicklingError, match="BytesStorageMetadata"):
        sharded_checkpoints.IndexUnpickler(BytesIO(pickle.dumps(index))).load()
    rewrite_index(kept.last, index)
    with pytest.raises(DovetailError, match="BytesStorageMetadata is not allowed in an index"):
        read(kept.last)
    index = sharded_checkpoints.SafeReader(kept.folder / "previous.ckpt").read_metadata()
    for place in index.storage_data.values():
        place.relative_path = "../epoch-0007.ckpt/__0_0.distcp"
    rewrite_index(kept.folder / "previous.ckpt", index)
    with pytest.raises(DovetailError, match="refers to other data than tensors"):
        read(kept.folder / "previous.ckpt")


@pytest.mark.parametrize("files", [{"../config.yaml": [1, "0"]}, {}, None])
def test_a_state_that_names_no_index_or_files_elsewhere_is_none(kept: Checkpoints, files: Any) -> None:
    values = sharded_checkpoints.read_sealed(kept.last / "state.pt")
    (kept.last / "state.pt").unlink()
    added = files and {**values["files"], **files}
    sharded_checkpoints.write_sealed({**values, "files": added}, kept.last / "state.pt")
    with pytest.raises(DovetailError, match="does not describe a sharded checkpoint"):
        read(kept.last)


class Model(nn.Module):
    def __init__(self, mesh: DeviceMesh, rows: int = 6) -> None:
        super().__init__()
        self.weight = nn.Parameter(cut(torch.zeros(rows, 50), mesh))
        self.register_buffer("queue", torch.zeros(3))


def test_a_sharded_model_takes_its_parts(kept: Checkpoints, mesh: DeviceMesh) -> None:
    model = Model(mesh)
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.5)
    found = kept.load(whole=False)
    assert found is not None
    assert "weight" not in found["learner"]
    sharded_checkpoints.fill(model, optimiser, found)
    assert torch.equal(model.weight.full_tensor(), torch.full((6, 50), 2.0))
    assert torch.equal(model.queue, torch.full((3,), 2.0))
    moments = optimiser.state[model.weight]
    assert torch.equal(moments["exp_avg"].full_tensor(), torch.arange(300.0).view(6, 50) + 2)
    assert float(moments["step"]) == 2
    assert optimiser.param_groups[0]["lr"] == 0.1


def test_parts_of_another_model_get_a_sentence(kept: Checkpoints, mesh: DeviceMesh) -> None:
    for model, message in (
        (Model(mesh, rows=7), "do not match this model and recipe .*config.yaml"),
        (nn.Linear(2, 2), "does not match this model and recipe .bias.; use the run's config.yaml"),
    ):
        found = kept.load(whole=False)
        assert found is not None
        with pytest.raises(DovetailError, match=message):
            sharded_checkpoints.fill(model, torch.optim.AdamW(model.parameters(), lr=0.5), found)


def test_a_flipped_bit_is_found_before_the_parts_are_taken(kept: Checkpoints, mesh: DeviceMesh) -> None:
    path = kept.last / "__0_0.distcp"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    model, found = Model(mesh), kept.load(whole=False)
    assert found is not None
    with pytest.raises(DovetailError, match=r"__0_0.distcp has a wrong checksum; remove this folder and use --resume"):
        sharded_checkpoints.fill(model, torch.optim.AdamW(model.parameters(), lr=0.5), found)


def test_moments_lie_in_memory_as_their_weights_do(mesh: DeviceMesh) -> None:
    weight = torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    moment = torch.randn(4, 3, 2, 2)
    found = laid_out_as(weight, moment)
    assert found.stride() == weight.stride()
    assert torch.equal(found, moment)
    parts = laid_out_as(cut(moment, mesh), weight)
    assert own_part(parts).is_contiguous()
    assert torch.equal(own_part(parts), weight)
    assert laid_out_as(weight, torch.tensor(3.0)).stride() == ()


def test_norms_are_those_of_whole_tensors(mesh: DeviceMesh) -> None:
    values = [torch.randn(4, 3), torch.randn(5), torch.randn(())]
    expected = torch.stack([value.norm() for value in values])
    torch.testing.assert_close(norms_of(values), expected)
    torch.testing.assert_close(norms_of([cut(values[0], mesh), cut(values[1], mesh), values[2]]), expected)
    assert norms_of([]).shape == (0,)
