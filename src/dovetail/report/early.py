"""Checks of `dovetail embed` that need neither PyTorch nor a model library, whose import takes seconds."""

from __future__ import annotations

from pathlib import Path

from dovetail.data.folders import refuse_without_images
from dovetail.errors import OptionsError
from dovetail.files.writable import check_writable
from dovetail.report.options import EmbedOptions


def check_early(options: EmbedOptions) -> None:
    """Raise `DovetailError` for an output file or images that `embed` would refuse."""
    check_embed(options)
    refuse_without_images(options.data)


def check_embed(options: EmbedOptions) -> None:
    """Raise `DovetailError` if the output is no file of a supported format, or cannot be written, or without images."""
    path = Path(options.out)
    if path.suffix not in (".npy", ".parquet"):
        raise OptionsError(f"--out {path} has an unsupported suffix; expected .npy or .parquet.")
    if path.is_dir():
        raise OptionsError(f"--out {path} is a folder; specify a file.")
    if options.data is None:
        raise OptionsError("--data is missing; specify a folder of images.")
    check_writable(path.parent)
