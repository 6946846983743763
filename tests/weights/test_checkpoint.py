"""Files that `torch.save` wrote, or that only look so: tensors come out, and nothing of them is run."""

from __future__ import annotations

import argparse
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dovetail.errors import WeightsError
from dovetail.weights.checkpoint import read_weights


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.made),)


def test_dictionaries_become_a_part_of_the_names(tmp_path: Path) -> None:
    content = {
        "epoch": 3,
        "args": argparse.Namespace(arch="vit_small", lr=0.1),
        "student": {"a.weight": torch.ones(2)},
        "state": {"teacher": {"b": torch.ones(3), "text": "x"}},
        "optimizer": {"state": {0: {"exp_avg": torch.ones(4)}}},
        "sparse": torch.ones(2, 2).to_sparse(),
    }
    torch.save(content, tmp_path / "a.pth")
    assert set(read_weights(tmp_path / "a.pth")) == {"student.a.weight", "state.teacher.b"}


@pytest.mark.parametrize("old", [False, True])
def test_no_code_is_run(tmp_path: Path, old: bool) -> None:
    made = tmp_path / "made"
    content = {"weight": torch.ones(2), "x": Code(made)}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not old)
    with pytest.raises(WeightsError, match=r"contains Python objects.*torch\.save\(model\.state_dict\(\)"):
        read_weights(tmp_path / "a.pth")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(WeightsError, match=r"contains Python objects \(torch\.nn\.modules\.linear\.Linear\)"):
        read_weights(tmp_path / "module.pt")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Code(made)))
    with pytest.raises(WeightsError):
        read_weights(tmp_path / "plain.bin")
    assert not made.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not weights", bytes(4096)])
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.ckpt").write_bytes(content)
    with pytest.raises(WeightsError, match=r"a\.ckpt"):
        read_weights(tmp_path / "a.ckpt")


def test_nothing_stands_for_more_memory_than_the_file_has(tmp_path: Path) -> None:
    torch.save({"wide": torch.zeros(1).expand(1 << 40)}, tmp_path / "wide.pth")
    with pytest.raises(WeightsError, match="larger than its data, such as 'wide'"):
        read_weights(tmp_path / "wide.pth")
    value = torch.zeros(1000)
    torch.save({str(index): value for index in range(1000)}, tmp_path / "shared.pth")
    with pytest.raises(WeightsError, match="larger than its data"):
        read_weights(tmp_path / "shared.pth")
    torch.save({"meta": torch.zeros(1 << 40, device="meta")}, tmp_path / "meta.pth")
    with pytest.raises(WeightsError):
        read_weights(tmp_path / "meta.pth")
    torch.save({"zeros": torch.zeros(1 << 16)}, tmp_path / "zeros.pth")
    with (
        zipfile.ZipFile(tmp_path / "zeros.pth") as archive,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for entry in archive.namelist():
            packed.writestr(entry, archive.read(entry))
    with pytest.raises(WeightsError, match="is a compressed archive"):
        read_weights(tmp_path / "bomb.pth")


def test_tied_weights_are_no_attack(tmp_path: Path) -> None:
    value = torch.ones(500)
    torch.save({"a": value, "b": value}, tmp_path / "tied.pth")
    assert set(read_weights(tmp_path / "tied.pth")) == {"a", "b"}


def test_files_without_tensors(tmp_path: Path) -> None:
    for name, content in (("list", [torch.ones(2)]), ("empty", {}), ("tensor", torch.ones(2))):
        torch.save(content, tmp_path / f"{name}.pth")
        with pytest.raises(WeightsError, match="contains no named tensors"):
            read_weights(tmp_path / f"{name}.pth")


def test_values_that_are_not_finite(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.tensor([1.0, torch.nan])}}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"NaN or infinite values, first in 'state_dict\.a'"):
        read_weights(tmp_path / "a.pth")
