"""Reading files of weights that anyone may have written: .safetensors, and what `torch.save` wrote.

A `torch.save` file is unpickled with `weights_only=True`, which builds tensors and plain values and calls nothing else.
Before that the archive's sizes are looked at, and afterwards every tensor is checked against the memory behind it, so
that a small file cannot ask for a large amount of memory.
"""

from __future__ import annotations

import argparse
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from dovetail.errors import WeightsError
from dovetail.files.finite import check_finite

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar")
MOST_TENSORS = 100_000
MOST_SHARING = 8  # times the file's size that all tensors together may have: modules may share weights
DEEPEST = 6  # levels of dictionaries

# What models compute by themselves and no file needs to bring.
COMPUTED = re.compile(
    r"(^|\.)(num_batches_tracked|relative_position_index|attn_mask|relative_coords_table|bias_mask|periods|freqs)$"
)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, on the CPU.

    Dictionaries within the file become a part of the names: the tensor "conv1.weight" below "state_dict" is
    "state_dict.conv1.weight".

    Args:
        path: A .safetensors file, or a file that `torch.save` wrote: .pth, .pt, .ckpt, .bin or .pth.tar.

    Raises:
        WeightsError: It cannot be read, holds no tensors, or would need more than tensors and plain values.
    """
    if not path.is_file():
        raise WeightsError(f"There are no weights at {path}; give a run's folder or a file ({', '.join(SUFFIXES)}).")
    if path.suffix == ".safetensors":
        weights = _read_safetensors(path)
    elif path.suffix in SUFFIXES:
        weights = _read_torch(path)
    else:
        raise WeightsError(
            f"{path} ends in {path.suffix or 'nothing'!r}; give weights as one of {', '.join(SUFFIXES)}."
        )
    learned = {name: value for name, value in weights.items() if not COMPUTED.search(name)}
    check_finite(learned, str(path), "give other weights")
    return weights


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} is not a .safetensors file ({error}); export the weights again.") from error


def _read_torch(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a `torch.save` file."""
    _check_archive(path)
    try:
        # Official checkpoints of DINO, iBOT and MAE keep their options as a Namespace, which is plain attributes.
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on how old a format is, and on sparse tensors, which are left out
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive raises almost anything
        reason = " ".join(str(error).split())
        found = re.search(r"GLOBAL ([\w.]+)", reason)
        if found or "weights_only" in reason:
            more = f" ({found[1]})" if found else ""
            raise WeightsError(
                f"{path} holds more than tensors{more}, and no code of a file is run; save its state_dict alone, with "
                "torch.save(model.state_dict(), FILE)."
            ) from error
        raise WeightsError(f"{path} cannot be read ({reason[:120]}); save the weights again.") from error
    weights = dict(_tensors_in(content, "", 0))
    if not weights:
        raise WeightsError(f"{path} holds no tensors by name; give a file with a state_dict.")
    _check_memory(weights, path)
    return weights


def _check_archive(path: Path) -> None:
    """Raise `WeightsError` for an archive that unpacks to more than the file holds: torch never compresses."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path} cannot be read ({error}); save the weights again.") from error
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > path.stat().st_size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise WeightsError(f"{path} is compressed, which torch.save does not do; save the weights again.")


def _tensors_in(content: Any, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the dense tensors of a content under dotted names; other keys than texts are those of optimisers."""
    if not isinstance(content, Mapping) or depth > DEEPEST:
        return
    for key, value in content.items():
        if not isinstance(key, str):
            continue
        if isinstance(value, Tensor):
            if value.layout == torch.strided and not value.is_quantized:
                yield prefix + key, value.detach()
        else:
            yield from _tensors_in(value, f"{prefix}{key}.", depth + 1)


def _check_memory(weights: Mapping[str, Tensor], path: Path) -> None:
    """Raise `WeightsError` for tensors that stand for more memory than the file brought."""
    total = sum(value.nbytes for value in weights.values())
    spread = next(
        (name for name, value in weights.items() if value.is_meta or value.nbytes > value.untyped_storage().nbytes()),
        None,
    )
    if spread is not None or total > MOST_SHARING * path.stat().st_size or len(weights) > MOST_TENSORS:
        raise WeightsError(
            f"{path} stands for more values than it holds{f', first in {spread!r}' if spread else ''}; save the "
            "weights again."
        )
