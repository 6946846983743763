"""Writing a file that a user named: where that cannot be done, one sentence says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from dovetail.errors import ResourceError
from dovetail.files.durable import put_in_place
from dovetail.files.finite import check_finite
from dovetail.files.locking import in_use
from dovetail.files.tensors import write_tensors

WAIT_S = 10.0  # other files may be written into the same folder at the same time


@contextmanager
def writing(path: Path, *, option: str) -> Iterator[None]:
    """Make and hold the folder of a file that the block writes.

    Args:
        path: The file.
        option: What it was named with.

    Raises:
        DovetailError: The folder cannot be made, another process writes into it, or the block cannot write the file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with in_use(path.parent, option=option, wait_s=WAIT_S, keep=False):
            yield
    except (OSError, RuntimeError, SafetensorError) as error:  # the latter two are those of tensors' writers
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).partition("\n")[0]
        raise ResourceError(
            f"{path} cannot be written ({reason.rstrip('.')}); name another file with --{option}, or make room there."
        ) from error


def write_weights(weights: dict[str, Tensor], path: Path, *, below: str | None = None) -> None:
    """Write tensors by name: with `torch.save` unless the file is a .safetensors one, where asked below a key there."""
    if path.suffix == ".safetensors":
        write_tensors(weights, path)
        return
    check_finite(weights, f"What was to be written to {path}", "train again with a lower learning rate")
    with aside(path) as fresh:
        torch.save(weights if below is None else {below: weights}, fresh)


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Yield the name of a file to write, which replaces `path` once it is whole."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield fresh
        put_in_place(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
