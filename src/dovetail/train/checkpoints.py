"""Checkpoints that are whole or absent: written aside, flushed, renamed, and carrying their own checksums.

    checkpoints/last.ckpt         the newest
    checkpoints/previous.ckpt     the one before, in case the disk damages the newest; until the run is finished
    checkpoints/epoch-0010.ckpt   kept ones, by whole epochs done

Each is a file (see `dovetail.train.sealed`) or, of a run whose weights are cut over processes, a folder of pieces (see
`dovetail.train.pieces`). Whoever reads one need not know which.
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
from dovetail.train import pieces
from dovetail.train.pieces import together
from dovetail.train.sealed import flush_folder, link_or_copy, read_sealed, write_sealed

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"

log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run in `folder`; made when the first one is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def last(self) -> Path:
        """Where the newest checkpoint stands."""
        return self.folder / LAST

    def save(self, state: dict[str, Any], *, keep_as_epoch: int | None = None) -> Path:
        """Write `state` as the newest checkpoint; with `keep_as_epoch` keep it under that epoch's name too.

        Raises:
            DovetailError: When the disk does not take it; the checkpoints written before stay as they are.
        """
        fresh = self.folder / f"{LAST}.{os.getpid()}.tmp"

        def write() -> None:
            self.folder.mkdir(parents=True, exist_ok=True)
            write_sealed(state, fresh)
            self._put_in_place(fresh, keep_as_epoch)

        self._careful(write, fresh)
        return self.last

    def save_pieces(self, state: dict[str, Any], *, keep_as_epoch: int | None = None) -> Path:
        """Do as `save` for a state whose tensors are cut over processes; every process has to call it.

        Raises:
            DovetailError: In every process, when the disk does not take what one of them has to write.
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
            pieces.write(state, fresh)
            together(place)

        self._careful(write, fresh)
        return self.last

    def _careful(self, write: Callable[[], None], fresh: Path) -> None:
        """Write, and where that fails remove what was written and say so in a sentence."""
        try:
            write()
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
            with contextlib.suppress(OSError):
                remove(fresh)
            raise ResourceError(
                f"No checkpoint could be written to {self.folder} ({error}); make room there and go on with --resume."
            ) from error

    def _put_in_place(self, fresh: Path, keep_as_epoch: int | None) -> None:
        """Make `fresh` the newest checkpoint."""
        previous = self.folder / PREVIOUS
        if self.last.is_dir():
            remove(previous)
            self.last.rename(previous)  # a folder cannot be replaced; until the next line there is the previous one
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
        """Return the newest whole checkpoint's state on the processor, None when none was ever written.

        Args:
            whole: Put together what is in pieces; else that is left to `pieces.fill`.

        Raises:
            RunError: When there are checkpoints and none is whole.
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
            raise RunError(f"No checkpoint in {self.folder} is whole; start again with --overwrite.")
        return None

    def prune(self) -> None:
        """Remove what a finished run does not need: the checkpoint before the last one. Kept epochs stay."""
        if self.last.exists():
            remove(self.folder / PREVIOUS)

    def clear_leftovers(self) -> None:
        """Remove what interrupted writes left behind."""
        for path in self.folder.glob("*.tmp"):
            remove(path)


def check_state(path: Path, state: Any) -> None:
    """Raise `RunError` unless a checkpoint holds a run's state, of finite weights and buffers."""
    if not isinstance(state, dict) or not isinstance(state.get("step"), int):
        raise RunError(f"Checkpoint {path} says no number of steps; an older one is needed.")
    kinds = {"settings": dict, "optimiser": dict, "skipped_steps": int}
    odd = [name for name, kind in kinds.items() if not isinstance(state.get(name, kind()), kind)]
    if odd or state["step"] < 0:
        raise RunError(f"Checkpoint {path} does not say its {(odd or ['step'])[0]}; an older one is needed.")
    learner = state.get("learner", {})
    if not isinstance(learner, dict) or not all(isinstance(value, Tensor) for value in learner.values()):
        raise RunError(f"Checkpoint {path} holds more than tensors as weights; an older one is needed.")
    check_finite(learner, f"Checkpoint {path}", "an older one is needed")


def read(path: Path, *, whole: bool = True) -> dict[str, Any]:
    """Return the state in a checkpoint, on the processor, after checking that it is whole; `whole` as in `load`.

    Raises:
        DovetailError: When it is damaged, holds code, or is no checkpoint.
    """
    return pieces.read(path, whole=whole) if path.is_dir() else read_sealed(path)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there; a folder is never there in part under its own name."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    aside = path.with_name(f"{path.name}.gone.tmp")
    if path.suffix != ".tmp":
        remove(aside)
        path = path.rename(aside)
    shutil.rmtree(path)
