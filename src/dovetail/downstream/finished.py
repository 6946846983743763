"""A fine-tuned model on disk: `model.safetensors`, and `task.json` that says how to build and use it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from dovetail.data.reading.values import value_range
from dovetail.downstream.start import TASK_FILE, Source
from dovetail.errors import RunError, WeightsError
from dovetail.files.durable import write_whole
from dovetail.files.finite import check_finite
from dovetail.files.schema import checked
from dovetail.files.tensors import write_tensors
from dovetail.options import MOST_SIDE_PX, Range

WEIGHTS, TASK = "model.safetensors", TASK_FILE
TaskName = Literal["classify", "segment", "detect"]


KINDS: dict[str, Any] = {
    "task": TaskName,
    "constructor": str,
    "names": tuple[str, ...],
    "mean": tuple[float, ...],
    "std": tuple[float, ...],
    "image_size": int,
    "in_channels": int,
    "options": dict[str, Any],
    "value_range": tuple[float, ...],
}


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
    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    in_channels: int
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
        content = json.loads(path.read_text(encoding="utf-8"))
        task = Task(**checked(content, KINDS, path, "fine-tune anew"))
    except OSError as error:
        raise RunError(f"{folder} holds no fine-tuned model ({TASK} is missing); name a fine-tuned run.") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise RunError(f"{path} cannot be read ({error}); fine-tune anew.") from error
    check_task(task, path)
    return task


def check_task(task: Task, path: Path) -> None:
    """Raise `RunError` where a task's numbers fit no model, before memory is taken for one."""
    Range(1, most=MOST_SIDE_PX).check("image_size", task.image_size)
    Range(1, most=4096).check("in_channels", task.in_channels)
    whole = all(math.isfinite(value) for value in (*task.mean, *task.std, *task.value_range))
    if not whole or len(task.mean) != task.in_channels or len(task.std) != task.in_channels or min(task.std) <= 0:
        raise RunError(
            f"{path} does not say one finite mean and one deviation above 0 for each channel; fine-tune anew."
        )
    options = task.options
    pairs = [options[name] for name in ("window", "within_px") if options.get(name)]
    ids = options.get("ids", list(task.names))
    if not all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(one, int) and one > 0 for one in pair)
        for pair in pairs
    ):
        raise RunError(f"{path} has a window or within_px that is no pair of sides; fine-tune anew.")
    if not isinstance(ids, list) or len(ids) != len(task.names) or not all(isinstance(one, int | str) for one in ids):
        raise RunError(f"{path} has no id for each class; fine-tune anew.")
    if not task.names or len(task.value_range) not in (0, 2):
        raise RunError(f"{path} names no classes, or a value_range that is no pair of numbers; fine-tune anew.")


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load a fine-tuned run's weights into its model, strictly."""
    path = folder / WEIGHTS
    try:
        weights = load_file(path)
        check_finite(weights, str(path), "fine-tune anew")
        model.load_state_dict(weights, strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise WeightsError(f"{path} cannot be loaded ({first}); fine-tune anew.") from error
