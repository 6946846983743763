"""Files of tensors have the access rights of other files."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dovetail.files.tensors import write_tensors


@pytest.mark.skipif(sys.platform == "win32", reason="access rights are other ones there")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_weights_may_be_read_by_whoever_may_read_other_files(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_tensors({"a": torch.arange(3.0)}, tmp_path / "x.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == mode
    assert torch.equal(load_file(tmp_path / "x.safetensors")["a"], torch.arange(3.0))
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
