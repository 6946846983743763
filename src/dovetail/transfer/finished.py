"""A fine-tuned model on disk: `model.safetensors`, and `task.json` that says how to build and use it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from dovetail.data.values import value_range
from dovetail.durable import write_whole
from dovetail.errors import DovetailError
from dovetail.finite import check_finite
from dovetail.tensor_files import write_tensors
from dovetail.transfer.start import TASK_FILE, Source

WEIGHTS, TASK = "model.safetensors", TASK_FILE
TaskName = Literal["classify", "segment", "detect"]


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
        DovetailError: For a folder without one.
    """
    path = folder / TASK
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        plain: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
        }
        return Task(**plain)
    except OSError as error:
        raise DovetailError(
            f"{folder} holds no fine-tuned model ({TASK} is missing); name a fine-tuned run."
        ) from error
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DovetailError(f"{path} cannot be read ({error}); fine-tune anew.") from error


def load_weights(model: nn.Module, folder: Path) -> None:
    """Load a fine-tuned run's weights into its model, strictly."""
    path = folder / WEIGHTS
    try:
        weights = load_file(path)
        check_finite(weights, str(path), "fine-tune anew")
        model.load_state_dict(weights, strict=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        first = str(error).splitlines()[0]
        raise DovetailError(f"{path} cannot be loaded ({first}); fine-tune anew.") from error
