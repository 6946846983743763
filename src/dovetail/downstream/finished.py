"""A fine-tuned model on disk: `model.safetensors`, and `task.json` that says how to build and use it."""

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
from dovetail.files.tensors import write_tensors
from dovetail.options import MOST_SIDE_PX

WEIGHTS, TASK = "model.safetensors", TASK_FILE
TaskName = Literal["classify", "segment", "detect"]
ADVICE = "fine-tune anew"

Pair = Annotated[list[Annotated[int, Meta(ge=1)]], Meta(min_length=2, max_length=2)]


class TaskOptions(TypedDict, total=False):
    """Options of a task whose kinds matter before a model is built; others may be there."""

    window: Pair | None
    within_px: Pair | None
    ids: list[int | str]


@dataclass(frozen=True)
class Task:
    """How a fine-tuned model is built and used.

    Attributes:
        task: What it does.
        constructor: The call that builds the bare model; see `Source`.
        names: Of the classes.
        mean: Of each channel in [0, 1].
        std: Deviation of each channel.
        image_size: Side in pixels that the source was pre-trained with.
        in_channels: Channels of the pixels.
        options: What else building and using it needs.
        value_range: Black and white of images with more than 8 bits, where a range was given.
    """

    task: TaskName
    constructor: str
    names: Annotated[tuple[str, ...], Meta(min_length=1)]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: Annotated[int, Meta(ge=1, le=MOST_SIDE_PX)]
    in_channels: Annotated[int, Meta(ge=1, le=4096)]
    options: Mapping[str, Any] = field(default_factory=dict)
    value_range: tuple[float, ...] = ()

    @classmethod
    def of(cls, task: TaskName, source: Source, names: tuple[str, ...], options: Mapping[str, Any]) -> Task:
        """Return the task of a model on `source`."""
        bare = (source.constructor, names, source.mean, source.std, source.image_size, source.in_channels)
        return cls(task, *bare, options, value_range() or ())

    def source(self) -> Source:
        """Return the bare model's source, without weights."""
        return Source(self.constructor, None, self.mean, self.std, self.image_size, self.in_channels)


def save_finished(out: Path, model: nn.Module, task: Task) -> None:
    """Write a fine-tuned model into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    write_tensors(state, out / WEIGHTS)
    write_whole(out / TASK, json.dumps(asdict(task), indent=2) + "\n")


def read_task(folder: Path) -> Task:
    """Return what a fine-tuned run says about its model.

    Raises:
        RunError: For a folder without one.
    """
    path = folder / TASK
    try:
        task = converted(read_json(path, ADVICE), Task, path, ADVICE, closed=True)
    except OSError as error:
        raise RunError(f"{folder} holds no fine-tuned model ({TASK} is missing); name a fine-tuned run.") from error
    check_task(task, path)
    return task


def check_task(task: Task, path: Path) -> None:
    """Raise `RunError` where a task's numbers fit no model or one another, before memory is taken for one."""
    whole = all(math.isfinite(value) for value in (*task.mean, *task.std, *task.value_range))
    if not whole or len(task.mean) != task.in_channels or len(task.std) != task.in_channels or min(task.std) <= 0:
        raise RunError(f"{path} does not say one finite mean and one deviation above 0 for each channel; {ADVICE}.")
    if len(task.value_range) not in (0, 2):
        raise RunError(f"{path} has a value_range that is no pair of numbers; {ADVICE}.")
    options = converted(dict(task.options), TaskOptions, f"{path}, in its options,", ADVICE)
    if len(options.get("ids", task.names)) != len(task.names):
        raise RunError(f"{path} has no id for each class; {ADVICE}.")


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load a fine-tuned run's weights into its model, strictly."""
    path = folder / WEIGHTS
    try:
        weights = load_file(path)
        check_finite(weights, str(path), ADVICE)
        model.load_state_dict(weights, strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise WeightsError(f"{path} cannot be loaded ({first}); {ADVICE}.") from error
