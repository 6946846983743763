"""A run's folder: its config, and what may be emptied, resumed or written to."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dovetail.errors import OptionsError, ResourceError, RunError
from dovetail.files.durable import write_whole
from dovetail.files.locking import LOCK
from dovetail.files.options_file import read_options_file
from dovetail.parsing import check_saved
from dovetail.run.options import PretrainOptions

if TYPE_CHECKING:
    from torch import nn

CONFIG = "config.yaml"
RECIPE = "recipe.txt"
COPY = f"checkpoints/{CONFIG}"
PROBE = ".writable"
OF_A_RUN = "# What ran. The recipe's options are complete: those that the preset stands for are among them.\n"
LENGTHENED = "# Lengthened "
PATHS = ("data", "init", "knn_data", "dense_data")
PATTERN = re.compile(r"\{")  # of the names of shards
LEFTOVERS = (PROBE, f"{CONFIG}.tmp", LOCK)  # what a run killed before it had a config leaves
COMMANDED = ("overwrite", "resume", "budget")  # said for one call, and not kept with a run


@dataclass(frozen=True)
class Run:
    """A finished or stopped run.

    Attributes:
        folder: Where everything is: config.yaml, metrics.jsonl, train.log, checkpoints/, exported/.
        step: Optimiser steps done.
        total_steps: Optimiser steps of the whole run.
    """

    folder: Path
    step: int
    total_steps: int

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.total_steps

    def load(self) -> nn.Module:
        """Return the pre-trained module; see `dovetail.load`."""
        from dovetail.weights.exported import load

        return load(self.folder)


def check_out(out: str | Path, *, overwrite: bool, resume: bool) -> Path:
    """Return the run's folder, made.

    Raises:
        DovetailError: If it is not empty and neither way on is chosen, cannot be written, or holds no run to overwrite.
    """
    if not str(out):
        raise OptionsError("No folder for the run was named; give one with --out.")
    if overwrite and resume:
        raise OptionsError("--overwrite and --resume exclude each other; choose one.")
    folder = Path(out)
    if resume and not (folder / CONFIG).is_file():
        raise RunError(f"There is no run to resume in {folder}: it has no {CONFIG}.")
    try:
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file; name a folder for the run.")
        if not resume and folder.is_dir() and any(entry.name not in LEFTOVERS for entry in folder.iterdir()):
            if not overwrite:
                raise RunError(f"{folder} is not empty; add --overwrite to start anew or --resume to go on.")
            check_run(folder)
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / PROBE
        probe.write_bytes(b"0" * 4096)
        probe.unlink()
    except OSError as error:
        raise ResourceError(f"Cannot write to {folder}: {error.strerror}; choose another folder for --out.") from None
    return folder


def check_run(folder: Path) -> None:
    """Raise `RunError` where a folder does not look like a run's."""
    if not (folder / CONFIG).is_file():
        raise RunError(
            f"{folder} holds files but no run ({CONFIG} is missing), so --overwrite leaves it alone; "
            "name another folder."
        )


def refuse_sources_in(folder: Path, options: PretrainOptions) -> None:
    """Raise `RunError` where the folder to be emptied holds what the run begins with."""
    for name in PATHS:
        value = getattr(options, name)
        if not isinstance(value, (str, Path)) or "://" in str(value):
            continue
        if Path(value).resolve().is_relative_to(folder.resolve()):
            raise RunError(
                f"{name} {str(value)!r} lies in {folder}, which --overwrite empties; name another folder for --out."
            )


def empty(folder: Path) -> None:
    """Remove what a run left in `folder`, last of all what tells that it is a run's."""
    entries = (entry for entry in folder.iterdir() if entry.name != LOCK)  # which this process holds
    for entry in sorted(entries, key=lambda entry: entry.name == CONFIG):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def anchored(name: str, value: Any) -> Any:
    """Return the value of an option that names a path here as an absolute one, which holds in every working folder."""
    if name not in PATHS or not isinstance(value, str) or value in ("", "imagenet") or "://" in value:
        return value
    here = Path(PATTERN.split(value)[0])  # of a pattern of shards, what comes before its first brace
    known = here.exists() or (here.parent.is_dir() and here.name != value)
    return os.path.abspath(value) if known else value  # noqa: PTH100 - of a pattern, too, and links stay


def normal(value: Any) -> Any:
    """Return a value as it reads in a config file."""
    if isinstance(value, tuple):
        return list(value)
    return os.fspath(value) if isinstance(value, Path) else value


def read_config(folder: Path) -> dict[str, Any]:
    """Return a run's saved options."""
    place = folder / CONFIG
    if place.is_file() and not place.stat().st_size and (folder / COPY).is_file():
        place = folder / COPY
    content = read_options_file(place)
    if not isinstance(content, dict):
        raise RunError(
            f"{place} holds no options; put back the run's own {CONFIG}, of which {folder / COPY} is a copy, to go on "
            "with its checkpoints."
        )
    return content


def saved_options(folder: Path) -> dict[str, Any]:
    """Return a run's saved options; raise `DovetailError` for names or kinds that no run has.

    What a call commands is not among them, whatever the file says.
    """
    saved = read_config(folder)
    check_saved(PretrainOptions, saved, str(folder / CONFIG))
    return {name: value for name, value in saved.items() if name not in COMMANDED}


def write_config(folder: Path, options: Mapping[str, Any]) -> None:
    """Save a run's options, resolved, so that `dovetail pretrain --config` runs the same again.

    A comment says where a run was lengthened: its schedules were those of the shorter run up to there.
    """
    import yaml

    remarks = remarks_on_length(folder, options)
    plain = {name: anchored(name, normal(value)) for name, value in options.items()}
    for name in ("data", "model"):
        if not isinstance(plain[name], str):
            plain[name] = None  # given in Python; must be given again
    text = OF_A_RUN + remarks + yaml.safe_dump(plain, sort_keys=False)
    write_whole(folder / CONFIG, text)
    (folder / COPY).parent.mkdir(exist_ok=True)
    write_whole(folder / COPY, text)  # whoever empties or loses the first can still go on from the checkpoints


def remarks_on_length(folder: Path, options: Mapping[str, Any]) -> str:
    """Return the comments of the config in `folder` on how its run was lengthened, and one more where `options` do."""
    if not (folder / CONFIG).is_file() or not (folder / CONFIG).stat().st_size:
        return ""
    before = read_config(folder)
    lines = (folder / CONFIG).read_text(encoding="utf-8", errors="replace").splitlines()
    remarks = [line for line in lines if line.startswith(LENGTHENED)]
    had, has = (", ".join(f"{name} {of.get(name)}" for name in ("epochs", "max_steps")) for of in (before, options))
    if had != has:
        remarks.append(f"{LENGTHENED}from {had} to {has}.")
    return "".join(f"{line}\n" for line in remarks)
