"""Writing a file that a user named: where that cannot be done, one sentence says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from dovetail.errors import DovetailError
from dovetail.finite import check_finite
from dovetail.tensor_files import write_tensors


@contextmanager
def writing(path: Path, *, option: str) -> Iterator[None]:
    """Make the folder of a file that the block writes.

    Args:
        path: The file.
        option: What it was named with.

    Raises:
        DovetailError: The folder cannot be made, or the block cannot write the file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # the latter two are those of tensors' writers
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).partition("\n")[0]
        raise DovetailError(
            f"{path} cannot be written ({reason.rstrip('.')}); name another file with --{option}, or make room there."
        ) from error


def write_weights(weights: dict[str, Tensor], path: Path, *, below: str | None = None) -> None:
    """Write tensors by name: with `torch.save` unless the file is a .safetensors one, where asked below a key there."""
    if path.suffix == ".safetensors":
        write_tensors(weights, path)
    else:
        check_finite(weights, f"What was to be written to {path}", "train again with a lower learning rate")
        torch.save(weights if below is None else {below: weights}, path)
