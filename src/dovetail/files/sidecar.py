"""Reading `model.json`, which anyone may have written: plain values of the right kinds, or a sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dovetail.errors import WeightsError

SIDECAR = "model.json"

TEXTS = ("constructor", "encoder_prefix")
SIDES = {"in_channels": 4096, "image_size": 1 << 14}
LISTS = ("decoder_prefixes", "untrained")


def read_sidecar(path: Path) -> dict[str, Any]:
    """Return the content of a `model.json`; empty where there is none.

    Raises:
        WeightsError: When it is no JSON, or lacks what it has to say.
    """
    if not path.is_file():
        return {}
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{path} cannot be read ({error}); export the weights again.") from error
    if not isinstance(info, dict):
        raise WeightsError(f"{path} holds a {type(info).__name__} and no description; export the weights again.")
    wrong = [name for name in TEXTS if not isinstance(info.get(name), str)]
    wrong += [name for name in LISTS if not _is_texts(info.get(name))]
    wrong += [name for name, most in SIDES.items() if name in info and not _is_count(info[name], most)]
    norm = info.get("normalisation")
    wrong += ["normalisation"] if norm is not None and not _is_normalisation(norm) else []
    wrong += ["extra"] if not isinstance(info.get("extra", {}), dict) else []
    if wrong:
        raise WeightsError(f"{path} does not say its {wrong[0]} as it should; export the weights again.")
    return info


def _is_count(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _is_normalisation(value: Any) -> bool:
    return isinstance(value, dict) and all(_numbers(value.get(name)) for name in ("mean", "std"))


def normalisation_in(info: Mapping[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return each channel's mean and deviation from the content of a `model.json`.

    Args:
        info: The content.
        channels: Channels of the pixels.

    Returns:
        None where the file does not say them, or says them for another number of channels.
    """
    found = info.get("normalisation")
    if not isinstance(found, dict):
        return None
    mean, std = _numbers(found.get("mean")), _numbers(found.get("std"))
    return (mean, std) if len(mean) == len(std) == channels else None


def _numbers(value: Any) -> tuple[float, ...]:
    """Return a list of numbers as a tuple; () for anything else."""
    if not isinstance(value, list) or not all(isinstance(one, int | float) for one in value):
        return ()
    return tuple(map(float, value))


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)
