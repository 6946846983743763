"""Reads and validates `model.json`, which is untrusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypedDict

from msgspec import Meta

from dovetail.errors import WeightsError
from dovetail.files.schema import converted, read_json

SIDECAR = "model.json"
ADVICE = "export the weights again"


class Normalisation(TypedDict):
    """Mean and standard deviation of each channel."""

    mean: list[float]
    std: list[float]


class Extra(TypedDict):
    """Values added by a run. Other fields are allowed."""

    value_range: NotRequired[Annotated[list[float], Meta(min_length=2, max_length=2)]]
    frozen_encoder: NotRequired[str]  # the weights of an encoder that was frozen for the whole run


class PartPaths(TypedDict):
    """Paths of the parts of a custom module."""

    encoder: NotRequired[list[str]]
    decoder: NotRequired[list[str]]
    taps: NotRequired[dict[str, str]]


SidePx = Annotated[int, Meta(ge=1, le=1 << 14)]
ImageSize = SidePx | Annotated[Sequence[SidePx], Meta(min_length=2, max_length=2)]
"""The side of a square, or height and width; msgspec 0.22 crashes for the union of a bounded number and a tuple."""


class Described(TypedDict):
    """Fields of `model.json`. Other fields are allowed."""

    constructor: str
    encoder_prefix: str
    decoder_prefixes: list[str]
    untrained: list[str]
    in_channels: NotRequired[Annotated[int, Meta(ge=1, le=4096)]]
    image_size: NotRequired[ImageSize]
    normalisation: NotRequired[Normalisation | None]
    extra: NotRequired[Extra]
    paths: NotRequired[PartPaths]


def read_sidecar(path: Path) -> dict[str, Any]:
    """Return the content of a `model.json`, or an empty dict if the file does not exist.

    Raises:
        WeightsError: The file is not JSON, or a required field is missing.
    """
    if not path.is_file():
        return {}
    try:
        content = read_json(path, ADVICE, raises=WeightsError)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); {ADVICE}.") from error
    converted(content, Described, path, ADVICE, raises=WeightsError)
    return dict(content)


def normalisation_in(info: Mapping[str, Any], channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the mean and standard deviation of each channel from the content of a `model.json`.

    Args:
        info: Content of the file.
        channels: Number of channels of the images.

    Returns:
        Mean and standard deviation, or None if the file has none, or has them for another number of channels.
    """
    found = info.get("normalisation")
    if not found:
        return None
    mean, std = tuple(map(float, found["mean"])), tuple(map(float, found["std"]))
    return (mean, std) if len(mean) == len(std) == channels else None
