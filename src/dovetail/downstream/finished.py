"""Saves and loads fine-tuned models: `model.safetensors`, and `task.json` with what is needed to build and use it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

from msgspec import Meta
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from dovetail.data.reading.values import value_range
from dovetail.downstream.start import TASK_FILE, Source
from dovetail.errors import RunError, WeightsError
from dovetail.files.durable import write_whole
from dovetail.files.finite import check_finite
from dovetail.files.schema import converted, read_json
from dovetail.files.sidecar import ImageSize, PartPaths
from dovetail.files.tensors import write_tensors
from dovetail.sizes import as_size

WEIGHTS, TASK = "model.safetensors", TASK_FILE
TaskName = Literal["classify", "segment", "detect"]
ADVICE = "fine-tune again"

Pair = Annotated[list[Annotated[int, Meta(ge=1)]], Meta(min_length=2, max_length=2)]

Sizes = Annotated[list[ImageSize], Meta(min_length=2, max_length=2)]


class TaskOptions(TypedDict, total=False):
    """Task options that are validated before a model is built. Other options are allowed."""

    window: Sizes | None
    within_px: Pair | None
    ids: list[int | str]
    paths: PartPaths


@dataclass(frozen=True)
class Task:
    """What is needed to build and use a fine-tuned model.

    Attributes:
        task: Name of the task.
        constructor: Constructor call of the bare model (see `Source`).
        names: Class names.
        mean: Mean of each channel in [0, 1].
        std: Standard deviation of each channel.
        image_size: Image size of pre-training in pixels, as in `Source`.
        in_channels: Number of input channels.
        options: Further options to build and use the model.
        value_range: Values of black and white in images with more than 8 bits, if specified.
    """

    task: TaskName
    constructor: str
    names: Annotated[tuple[str, ...], Meta(min_length=1)]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: ImageSize
    in_channels: Annotated[int, Meta(ge=1, le=4096)]
    options: Mapping[str, Any] = field(default_factory=dict)
    value_range: tuple[float, ...] = ()

    @classmethod
    def of(cls, task: TaskName, source: Source, names: tuple[str, ...], options: Mapping[str, Any]) -> Task:
        """Return the task of a model that is built on `source`."""
        if source.own is not None:
            options = {**options, "paths": source.own.paths()}
        bare = (source.constructor, names, source.mean, source.std, source.image_size, source.in_channels)
        return cls(task, *bare, options, value_range() or ())

    def source(self) -> Source:
        """Return the source of the bare model, without weights."""
        size = as_size(self.image_size)
        return Source(self.constructor, None, self.mean, self.std, size, self.in_channels)


def save_finished(out: Path, model: nn.Module, task: Task) -> None:
    """Write a fine-tuned model to `out`."""
    out.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    write_tensors(state, out / WEIGHTS)
    write_whole(out / TASK, json.dumps(asdict(task), indent=2) + "\n")


def read_task(folder: Path) -> Task:
    """Return the task of a fine-tuned run.

    Raises:
        RunError: The folder contains no fine-tuned model.
    """
    path = folder / TASK
    try:
        task = converted(read_json(path, ADVICE), Task, path, ADVICE, closed=True)
    except OSError as error:
        raise RunError(
            f"{folder} contains no fine-tuned model ({TASK} is missing); specify a fine-tuned run."
        ) from error
    check_task(task, path)
    return task


def check_task(task: Task, path: Path) -> None:
    """Raise `RunError` if the values of a task are invalid, before memory is allocated for the model."""
    whole = all(math.isfinite(value) for value in (*task.mean, *task.std, *task.value_range))
    if not whole or len(task.mean) != task.in_channels or len(task.std) != task.in_channels or min(task.std) <= 0:
        raise RunError(f"{path} needs a finite mean and a standard deviation above 0 for each channel; {ADVICE}.")
    if len(task.value_range) not in (0, 2):
        raise RunError(f"{path} has a value_range that is not a pair of numbers; {ADVICE}.")
    options = converted(dict(task.options), TaskOptions, f"{path}, in its options,", ADVICE)
    if len(options.get("ids", task.names)) != len(task.names):
        raise RunError(f"{path} lacks an id for each class; {ADVICE}.")


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load the weights of a fine-tuned run into its model strictly."""
    path = folder / WEIGHTS
    try:
        weights = load_file(path)
        check_finite(weights, str(path), ADVICE)
        model.load_state_dict(weights, strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise WeightsError(f"{path} cannot be loaded ({first}); {ADVICE}.") from error
