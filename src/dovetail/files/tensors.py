"""Files of tensors, which whoever may read the files beside them may read too."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from dovetail.files.durable import put_in_place
from dovetail.files.finite import check_finite


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Write tensors by name in the safetensors format, with the access rights of any other new file of the folder.

    The file is whole or absent under its name, whenever the process is killed.

    The library gives its files to their owner alone, so that nobody else on a cluster could load them.

    Raises:
        DovetailError: For values that are not finite; nothing is written.
    """
    check_finite(tensors, f"What was to be written to {path}", "train again with a lower learning rate")
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.touch()
    rights = stat.S_IMODE(aside.stat().st_mode)
    try:
        save_file(tensors, aside)
        aside.chmod(rights)
        put_in_place(aside, path)
    finally:
        aside.unlink(missing_ok=True)
