"""Reads untrusted weight files: .safetensors and files written by `torch.save`.

A `torch.save` file is unpickled with `weights_only=True`, which creates tensors and plain values and runs no code. The
sizes in the archive are checked first, and every tensor is checked against its storage afterwards. So a small file
cannot allocate a large amount of memory.
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
MOST_SHARING = 8  # total size of the tensors relative to the file: modules may share weights
DEEPEST = 6  # levels of nested dictionaries

# Buffers that models compute themselves, so no file needs to contain them.
COMPUTED = re.compile(
    r"(^|\.)(num_batches_tracked|relative_position_index|attn_mask|relative_coords_table|bias_mask|periods|freqs)$"
)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file by name, on the CPU.

    Keys of nested dictionaries become prefixes: the tensor "conv1.weight" in the dictionary "state_dict" is named
    "state_dict.conv1.weight".

    Args:
        path: A .safetensors file, or a file written by `torch.save`: .pth, .pt, .ckpt, .bin or .pth.tar.

    Raises:
        WeightsError: The file cannot be read, contains no tensors, or contains objects that are not plain values.
    """
    if not path.is_file():
        raise WeightsError(f"Found no weights at {path}; specify a run folder or a file ({', '.join(SUFFIXES)}).")
    if path.suffix == ".safetensors":
        weights = _read_safetensors(path)
    elif path.suffix in SUFFIXES:
        weights = _read_torch(path)
    else:
        raise WeightsError(
            f"{path} has an unsupported suffix; expected a weight file with one of {', '.join(SUFFIXES)}."
        )
    learned = {name: value for name, value in weights.items() if not COMPUTED.search(name)}
    check_finite(learned, str(path), "specify other weights")
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
            warnings.simplefilter("ignore")  # about old formats, and about sparse tensors, which are skipped
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged archive raises almost anything
        reason = " ".join(str(error).split())
        found = re.search(r"GLOBAL ([\w.]+)", reason)
        if found or "weights_only" in reason:
            more = f" ({found[1]})" if found else ""
            raise WeightsError(
                f"{path} contains Python objects{more}, which are not loaded because they can run code; save only the "
                "state_dict with torch.save(model.state_dict(), FILE)."
            ) from error
        raise WeightsError(f"{path} cannot be read ({reason[:120]}); save the weights again.") from error
    weights = dict(_tensors_in(content, "", 0))
    if not weights:
        raise WeightsError(f"{path} contains no named tensors; specify a file with a state_dict.")
    _check_memory(weights, path)
    return weights


def _check_archive(path: Path) -> None:
    """Raise `WeightsError` for a compressed archive: torch never compresses."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (OSError, zipfile.BadZipFile) as error:
        raise WeightsError(f"{path} cannot be read ({error}); save the weights again.") from error
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > path.stat().st_size or any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise WeightsError(f"{path} is a compressed archive, which torch.save never writes; save the weights again.")


def _tensors_in(content: Any, prefix: str, depth: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the dense tensors of nested dictionaries by dotted name. Keys that are not strings are skipped."""
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
    """Raise `WeightsError` if the tensors are larger than the data in the file."""
    total = sum(value.nbytes for value in weights.values())
    spread = next(
        (name for name, value in weights.items() if value.is_meta or value.nbytes > value.untyped_storage().nbytes()),
        None,
    )
    if spread is not None or total > MOST_SHARING * path.stat().st_size or len(weights) > MOST_TENSORS:
        raise WeightsError(
            f"{path} describes tensors that are larger than its data{f', such as {spread!r}' if spread else ''}; save "
            "the weights again."
        )
