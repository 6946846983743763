"""Checks of `dovetail pretrain` that need neither PyTorch nor a model library, whose import takes seconds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dovetail.errors import DataError
from dovetail.files.missing import refuse_missing
from dovetail.files.writable import check_writable
from dovetail.networks.known import refuse_unknown
from dovetail.recipes.spelling import refuse_other_spellings
from dovetail.run.folder import CONFIG, check_out
from dovetail.run.options import PretrainOptions


def check_early(options: PretrainOptions) -> None:
    """Raise `DovetailError` for a run folder, options or images that `pretrain` would refuse."""
    refuse_other_spellings(options, options.recipe)
    if not is_first_process():  # the first one may have begun to write
        return
    again = begun_before(options.out)
    resume = options.resume or again
    check_out(options.out, create=False, overwrite=options.overwrite and not again, resume=resume)
    check_writable(Path(options.out))
    if not resume:
        refuse_missing(options, new=True)
        options.check_complete()
        refuse_without_files(options.data)
        if isinstance(options.model, str):
            refuse_unknown(options.model)
        refuse_without_any_image(options.data)


def refuse_without_files(data: Any) -> None:
    """Raise `DataError` if the images are a folder without any file."""
    for one in data if isinstance(data, list | tuple) else [data]:
        if isinstance(one, str | Path) and Path(one).is_dir() and not any(files for _, _, files in os.walk(one)):
            raise DataError(f"{str(one)!r} contains no files; specify a folder of images with --data.")


def refuse_without_any_image(data: Any) -> None:
    """Raise `DataError` if the images are a folder with other files alone."""
    from dovetail.data.folders import refuse_without_images  # imports Pillow

    refuse_without_images(data)


def requeued() -> bool:
    """Return whether SLURM has requeued this job, which repeats its first command."""
    return int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0


def begun_before(out: str | Path) -> bool:
    """Return whether this job was requeued after the run in `out` began."""
    return requeued() and (Path(out) / CONFIG).is_file()


def is_first_process() -> bool:
    """Return whether this is the first process of a distributed run, which creates the folder."""
    names = ("RANK", "SLURM_PROCID", "LOCAL_RANK")
    return int(next((os.environ[name] for name in names if name in os.environ), "0")) == 0
