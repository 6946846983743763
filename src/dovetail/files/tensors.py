"""Writes safetensors files with the usual access rights."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from dovetail.files.durable import put_in_place
from dovetail.files.finite import check_finite


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors by name in the safetensors format, with the access rights of other new files in the folder.

    The file is written atomically. The safetensors library makes files readable for their owner only, so other users
    of a cluster could not load them; this function restores the usual rights.

    Raises:
        DovetailError: A tensor has NaN or infinite values. Nothing is written then.
    """
    check_finite(tensors, f"The model for {path}", "train again with a lower learning rate")
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.touch()
    rights = stat.S_IMODE(aside.stat().st_mode)
    try:
        save_file(tensors, aside)
        aside.chmod(rights)
        put_in_place(aside, path)
    finally:
        aside.unlink(missing_ok=True)
