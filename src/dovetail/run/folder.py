"""The run folder: its config file, and checks before it is overwritten, resumed or written to."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dovetail.data.shards.names import SIZES
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
PATHS = ("data", "masks", "init", "knn_data", "dense_data")
PATTERN = re.compile(r"\{")  # a pattern of shard names
STREAM = "stream"  # shards of a streaming dataset
LEFTOVERS = (PROBE, f"{CONFIG}.tmp", LOCK)  # files that a run leaves if it is killed before it has a config
COMMANDED = ("overwrite", "resume", "budget")  # options for one call, which are not saved with a run


@dataclass(frozen=True)
class Run:
    """A finished or stopped run.

    Attributes:
        folder: Run folder with config.yaml, metrics.jsonl, train.log, checkpoints/ and exported/.
        step: Number of finished optimiser steps.
        total_steps: Number of optimiser steps of the whole run.
    """

    folder: Path
    step: int
    total_steps: int

    @property
    def finished(self) -> bool:
        """Whether all steps are finished."""
        return self.step >= self.total_steps

    def load(self, *, model: Any = None) -> nn.Module:
        """Load the pre-trained module (see `dovetail.load`)."""
        from dovetail.run.load import load

        return load(self.folder, model=model)


def check_out(out: str | Path, *, overwrite: bool, resume: bool, create: bool = True) -> Path:
    """Check the run folder and, with `create`, create it and write to it.

    Raises:
        DovetailError: The folder is not empty and neither `overwrite` nor `resume` is set, or it is not writable, or
            contains no run to resume or overwrite.
    """
    if not str(out):
        raise OptionsError("--out is missing; specify a run folder.")
    if overwrite and resume:
        raise OptionsError("--overwrite and --resume cannot be combined; use one of them.")
    folder = Path(out)
    if resume and not (folder / CONFIG).is_file():
        raise RunError(f"{folder} contains no run to resume ({CONFIG} is missing); check --out, or omit --resume.")
    try:
        if folder.exists() and not folder.is_dir():
            raise RunError(f"{folder} is a file; specify a folder with --out.")
        if not resume and folder.is_dir() and not all(map(is_leftover, folder.iterdir())):
            if overwrite:
                check_run(folder)
            elif (folder / CONFIG).is_file():
                raise RunError(f"{folder} is not empty; add --overwrite to start again or --resume to continue.")
            else:  # neither of them takes such a folder
                raise RunError(f"{folder} is not empty, and contains no run; specify a new or empty folder with --out.")
        if create:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / PROBE
            probe.write_bytes(b"0" * 4096)
            probe.unlink()
    except OSError as error:
        raise ResourceError(f"Cannot write to {folder}: {error.strerror}; specify another folder with --out.") from None
    return folder


def is_leftover(entry: Path) -> bool:
    """Return whether a file or folder is what a run leaves if it fails before it has a config."""
    if entry.name == STREAM and entry.is_dir() and not entry.is_symlink():
        return all(one.name.startswith(SIZES) or one.match("shard-*.t[am][rp]") for one in entry.iterdir())
    return entry.name in LEFTOVERS


def check_run(folder: Path) -> None:
    """Raise `RunError` if a folder does not look like a run folder."""
    if not (folder / CONFIG).is_file():
        raise RunError(
            f"{folder} contains files, but no run ({CONFIG} is missing), so --overwrite does not delete them; "
            "specify another folder."
        )


def refuse_sources_in(folder: Path, options: PretrainOptions) -> None:
    """Raise `RunError` if the folder to be overwritten contains input of the run."""
    for name in PATHS:
        value = getattr(options, name)
        for one in value if isinstance(value, list | tuple) else [value]:
            if not isinstance(one, (str, Path)) or "://" in str(one):
                continue
            if Path(one).resolve().is_relative_to(folder.resolve()):
                raise RunError(
                    f"{name} {str(one)!r} is inside {folder}, which --overwrite deletes; specify another --out."
                )


def empty(folder: Path, *, keep: Collection[str] = ()) -> None:
    """Remove all files of a run except those to keep. The config file, which marks a run folder, is removed last."""
    keep = {LOCK, *keep}  # this process holds the lock
    entries = (entry for entry in folder.iterdir() if entry.name not in keep)
    for entry in sorted(entries, key=lambda entry: entry.name == CONFIG):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def anchored(name: str, value: Any) -> Any:
    """Make the paths in an option absolute, so that they are valid in any working folder. Return others unchanged."""
    if name == "data" and isinstance(value, list):
        return [anchored(name, normal(one)) for one in value]
    if name not in PATHS or not isinstance(value, str) or value in ("", "imagenet") or "://" in value:
        return value
    here = Path(PATTERN.split(value)[0])  # for a pattern of shards, the part before its first brace
    known = here.exists() or (here.parent.is_dir() and here.name != value)
    return os.path.abspath(value) if known else value  # noqa: PTH100 - works on patterns, and keeps links


def normal(value: Any) -> Any:
    """Convert a value to the form it has in a config file."""
    if isinstance(value, tuple):
        return list(value)
    return os.fspath(value) if isinstance(value, Path) else value


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of a run's config file."""
    place = folder / CONFIG
    if place.is_file() and not place.stat().st_size and (folder / COPY).is_file():
        place = folder / COPY
    content = read_options_file(place)
    if not isinstance(content, dict):
        raise RunError(f"{place} contains no options; restore it from its copy {folder / COPY} to resume the run.")
    return content


def saved_options(folder: Path) -> dict[str, Any]:
    """Return the saved options of a run. Raise `DovetailError` for unknown names or wrong types.

    Options for a single call, such as `overwrite`, are ignored even if the file contains them.
    """
    saved = read_config(folder)
    check_saved(PretrainOptions, saved, str(folder / CONFIG))
    return {name: value for name, value in saved.items() if name not in COMMANDED}


def write_config(folder: Path, options: Mapping[str, Any]) -> None:
    """Save the resolved options of a run, so that `dovetail pretrain --config` repeats it.

    If a run was lengthened, a comment records this, because its schedules were those of the shorter run before.
    """
    import yaml

    remarks = remarks_on_length(folder, options)
    plain = {name: anchored(name, normal(value)) for name, value in options.items()}
    if not is_plain(plain["data"]):
        plain["data"] = None  # a Python object, which must be passed again
    if not isinstance(plain["model"], str):
        plain["model"] = None
    text = OF_A_RUN + remarks + yaml.safe_dump(plain, sort_keys=False)
    write_whole(folder / CONFIG, text)
    (folder / COPY).parent.mkdir(exist_ok=True)
    write_whole(folder / COPY, text)  # a run whose config is lost can be resumed with the copy


MOST_ROOTS = 1000  # of a list of images, the config file does not keep a million paths


def is_plain(data: Any) -> bool:
    """Return whether the images of a run are specified by a path, or by a list of paths that a config file can keep."""
    if isinstance(data, list):
        return 0 < len(data) <= MOST_ROOTS and all(isinstance(one, str) for one in data)
    return isinstance(data, str)


def remarks_on_length(folder: Path, options: Mapping[str, Any]) -> str:
    """Return the comments on lengthening in the config in `folder`, plus one if `options` lengthen the run."""
    if not (folder / CONFIG).is_file() or not (folder / CONFIG).stat().st_size:
        return ""
    before = read_config(folder)
    lines = (folder / CONFIG).read_text(encoding="utf-8", errors="replace").splitlines()
    remarks = [line for line in lines if line.startswith(LENGTHENED)]
    had, has = (", ".join(f"{name} {of.get(name)}" for name in ("epochs", "max_steps")) for of in (before, options))
    if had != has:
        remarks.append(f"{LENGTHENED}from {had} to {has}.")
    return "".join(f"{line}\n" for line in remarks)
