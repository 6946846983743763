"""Writes a file whose path the user specified. Failures raise a one-sentence error."""

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

WAIT_S = 10.0  # another process may write to the same folder at the same time


@contextmanager
def writing(path: Path, *, option: str) -> Iterator[None]:
    """Create and lock the folder of a file that the block writes.

    Args:
        path: Path of the file.
        option: Name of the option that specifies it, for the error message.

    Raises:
        DovetailError: The folder cannot be created, another process writes to it, or the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with in_use(path.parent, option=option, wait_s=WAIT_S, keep=False):
            yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors raise the latter two
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error).partition("\n")[0]
        raise ResourceError(
            f"{path} cannot be written ({reason.rstrip('.')}); specify another file with --{option}, or free disk "
            "space."
        ) from error


def write_weights(weights: dict[str, Tensor], path: Path, *, below: str | None = None) -> None:
    """Write tensors by name to a .safetensors file, or else with `torch.save`, optionally nested under a key."""
    if path.suffix == ".safetensors":
        write_tensors(weights, path)
        return
    check_finite(weights, f"The model for {path}", "train again with a lower learning rate")
    with aside(path) as fresh:
        torch.save(weights if below is None else {below: weights}, fresh)


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, which replaces `path` when the block has written it."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield fresh
        put_in_place(fresh, path)
    finally:
        fresh.unlink(missing_ok=True)
