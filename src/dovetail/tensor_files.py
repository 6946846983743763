"""Files of tensors, which whoever may read the files beside them may read too."""

from __future__ import annotations

import stat
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from dovetail.finite import check_finite


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors by name in the safetensors format, with the access rights of any other new file of the folder.

    The library gives its files to their owner alone, so that nobody else on a cluster could load them.

    Raises:
        DovetailError: For values that are not finite; nothing is written.
    """
    check_finite(tensors, f"What was to be written to {path}", "train again with a lower learning rate")
    save_file(tensors, path)
    beside = path.with_name(f".{path.name}.rights")
    beside.touch()
    try:
        path.chmod(stat.S_IMODE(beside.stat().st_mode))
    finally:
        beside.unlink()
