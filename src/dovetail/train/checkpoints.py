"""Checkpoints with checksums, written atomically: to a temporary file, flushed, then renamed.

    checkpoints/last.ckpt         the newest checkpoint
    checkpoints/previous.ckpt     the previous one, in case the disk damages the newest; until the run is finished
    checkpoints/epoch-0010.ckpt   kept checkpoints, by number of finished epochs

A checkpoint is a file (see `dovetail.train.checksummed`) or, for a run with sharded weights, a folder (see
`dovetail.train.sharded_checkpoints`). Callers do not need to distinguish them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from dovetail.distributed import rank
from dovetail.errors import DovetailError, ResourceError, RunError
from dovetail.files.finite import check_finite
from dovetail.train import sharded_checkpoints
from dovetail.train.checksummed import flush_folder, link_or_copy, read_sealed, write_sealed
from dovetail.train.sharded_checkpoints import together

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of a run in `folder`, which is created with the first checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def last(self) -> Path:
        """Path of the newest checkpoint."""
        return self.folder / LAST

    def save(self, state: dict[str, Any], *, keep_as_epoch: int | None = None) -> Path:
        """Write `state` as the newest checkpoint; with `keep_as_epoch` also keep it under the name of that epoch.

        Raises:
            DovetailError: If it cannot be written; earlier checkpoints are kept.
        """
        fresh = self.folder / f"{LAST}.{os.getpid()}.tmp"

        def write() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_sealed(state, fresh)
            self._put_in_place(fresh, keep_as_epoch)

        self._careful(write, fresh)
        return self.last

    def save_pieces(self, state: dict[str, Any], *, keep_as_epoch: int | None = None) -> Path:
        """Like `save`, for a state with sharded tensors; every process must call it.

        Raises:
            DovetailError: In every process, if one of them cannot write its part.
        """
        fresh = self.folder / f"{LAST}.pieces.tmp"

        def clear() -> None:
            if rank() == 0:
                remove(fresh)
                fresh.mkdir(parents=True)

        def place() -> None:
            if rank() == 0:
                self._put_in_place(fresh, keep_as_epoch)

        def write() -> None:
            together(clear)
            sharded_checkpoints.write(state, fresh)
            together(place)

        self._careful(write, fresh)
        return self.last

    def _careful(self, write: Callable[[], None], fresh: Path) -> None:
        """Write a checkpoint; if that fails, remove its files and raise `DovetailError`."""
        try:
            write()
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
            with contextlib.suppress(OSError):
                remove(fresh)
            raise ResourceError(
                f"The checkpoint could not be written to {self.folder} ({error}); free disk space and use --resume."
            ) from error

    def _put_in_place(self, fresh: Path, keep_as_epoch: int | None) -> None:
        """Make `fresh` the newest checkpoint."""
        previous = self.folder / PREVIOUS
        if self.last.is_dir():
            remove(previous)
            self.last.rename(previous)  # a folder cannot be replaced atomically
        elif self.last.exists():
            if previous.is_dir():
                remove(previous)
            link_or_copy(self.last, previous)
            if fresh.is_dir():
                self.last.unlink()
        fresh.replace(self.last)
        if keep_as_epoch is not None:
            self._keep(self.folder / f"epoch-{keep_as_epoch:04d}.ckpt")
        flush_folder(self.folder)

    def _keep(self, target: Path) -> None:
        """Keep the newest checkpoint under another name."""
        if self.last.is_file():
            if target.is_dir():
                remove(target)
            link_or_copy(self.last, target)
            return
        aside = target.with_name(f"{target.name}.{os.getpid()}.tmp")
        remove(aside)
        aside.mkdir()
        for file in self.last.iterdir():
            link_or_copy(file, aside / file.name)
        flush_folder(aside)
        remove(target)
        aside.replace(target)

    def load(self, *, whole: bool = True) -> dict[str, Any] | None:
        """Return the state of the newest intact checkpoint on the CPU, or None if there is no checkpoint.

        Args:
            whole: Load sharded tensors completely; otherwise `sharded_checkpoints.fill` loads them later.

        Raises:
            RunError: If there are checkpoints, but all are damaged.
        """
        candidates = [path for path in (self.last, self.folder / PREVIOUS) if path.exists()]
        for path in candidates:
            try:
                state = read(path, whole=whole)
                check_state(path, state)
                return state
            except DovetailError as error:
                log.warning("%s", error)
        if candidates:
            raise RunError(f"All checkpoints in {self.folder} are damaged; start again with --overwrite.")
        return None

    def prune(self) -> None:
        """Remove the previous checkpoint, which a finished run does not need; kept epochs stay."""
        if self.last.exists():
            remove(self.folder / PREVIOUS)

    def clear_leftovers(self) -> None:
        """Remove files of interrupted writes."""
        for path in self.folder.glob("*.tmp"):
            remove(path)


def check_state(path: Path, state: Any) -> None:
    """Raise `RunError` unless a checkpoint contains the state of a run with finite weights and buffers."""
    if not isinstance(state, dict) or not isinstance(state.get("step"), int):
        raise RunError(f"Checkpoint {path} has no number of steps; an older one is needed.")
    kinds = {"settings": dict, "optimiser": dict, "skipped_steps": int}
    odd = [name for name, kind in kinds.items() if not isinstance(state.get(name, kind()), kind)]
    if odd or state["step"] < 0:
        raise RunError(f"Checkpoint {path} has no valid {(odd or ['step'])[0]}; an older one is needed.")
    learner = state.get("learner", {})
    if not isinstance(learner, dict) or not all(isinstance(value, Tensor) for value in learner.values()):
        raise RunError(f"Checkpoint {path} has weights that are not tensors; an older one is needed.")
    check_finite(learner, f"Checkpoint {path}", "an older one is needed")


def read(path: Path, *, whole: bool = True) -> dict[str, Any]:
    """Return the state in a checkpoint on the CPU, after checking that it is intact; `whole` as in `load`.

    Raises:
        DovetailError: If the file is damaged, contains code, or is not a checkpoint.
    """
    return sharded_checkpoints.read(path, whole=whole) if path.is_dir() else read_sealed(path)


def remove(path: Path) -> None:
    """Remove a file or folder if it exists; a folder is renamed first, so it never exists partially under its name."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    aside = path.with_name(f"{path.name}.gone.tmp")
    if path.suffix != ".tmp":
        remove(aside)
        path = path.rename(aside)
    shutil.rmtree(path)
