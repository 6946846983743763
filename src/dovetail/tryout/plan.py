"""Plans `dovetail try`: the pre-trainings, the starts to compare, and the time for each stage."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dovetail.durations import in_words
from dovetail.errors import RunError
from dovetail.files.durable import write_whole
from dovetail.networks import lite0
from dovetail.networks.build import build_network
from dovetail.networks.initialise import is_downloaded
from dovetail.networks.network import Network
from dovetail.run.choose import is_vit
from dovetail.train.defaults import best_accelerator
from dovetail.tryout.options import TryOptions

PRETRAINING_SHARE = 0.45  # fraction of the budget for all pre-trainings together
BEST = 2  # number of starts to fine-tune in addition to the one without pre-training
STATE = "state.json"
LITE0 = (
    "smp.FPN(encoder_name='tu-tf_efficientnet_lite0', decoder_pyramid_channels=128, decoder_segmentation_channels=128)"
)


@dataclass(frozen=True)
class PreTraining:
    """A pre-training to try.

    Attributes:
        name: Name of its folder.
        method: Name of the method.
        preset: Preset of its run.
    """

    name: str
    method: str
    preset: Literal["auto", "continue"] = "auto"


@dataclass(frozen=True)
class Start:
    """A start of fine-tuning to compare.

    Attributes:
        title: Name in tables and messages.
        run: Name of the pre-training, or None without pre-training.
        part: Part to load: "encoder" or "all".
    """

    title: str
    run: str | None
    part: str

    @property
    def tap(self) -> str:
        """The frozen features that are evaluated for this start: "decoder" or "encoder"."""
        return "decoder" if self.part == "all" else "encoder"


@dataclass(frozen=True)
class Plan:
    """A model with its starting weights, the pre-trainings to try, and the starts to compare.

    Attributes:
        model: Name of the model.
        init: Weights to start from, or None for random weights.
        pretrainings: Pre-trainings in the order in which they run.
        starts: Starts to compare. The first one has no pre-training.
    """

    model: str
    init: str | None
    pretrainings: tuple[PreTraining, ...]
    starts: tuple[Start, ...]


def plan_of(options: TryOptions) -> Plan:
    """Plan the comparison.

    Raises:
        DovetailError: The model cannot be built, or has no decoder.
    """
    model = options.model if options.model != "auto" else default_model()
    network = build_network(model)
    if not network.decoder_prefixes:
        raise RunError(
            f"{model} has no decoder, but `dovetail try` compares whole models; specify a model such as timm/NAME+fpn."
        )
    init = first_weights(options.init, network)
    base = "dino" if is_vit(network) else "densecl"
    decon = "dino+decon-sl" if is_vit(network) else f"decon-sl-{base}"
    alone = "random weights" if init is None else "ImageNet weights" if init == "imagenet" else str(init)
    # With trained weights the encoder is worth keeping: "continue" changes it late and slowly.
    runs = [PreTraining("base", base), PreTraining("decon", decon, "auto" if init is None else "continue")]
    starts = [
        Start(alone, None, init or "random"),
        Start(f"{base}, encoder", "base", "encoder"),
        Start(f"{decon}, encoder", "decon", "encoder"),
        Start(f"{decon}, whole", "decon", "all"),
    ]
    if init is not None:
        runs.append(PreTraining("targets", "encoder-targets"))
        starts.append(Start("encoder-targets, whole", "targets", "all"))
    return Plan(model, init, tuple(runs), tuple(starts))


def default_model() -> str:
    """Return the default model."""
    if lite0.installed_version() is not None:
        return LITE0
    return "smp/fpn/resnet50" if best_accelerator() == "cuda" else "smp/fpn/resnet18"


def first_weights(init: str, network: Network) -> str | None:
    """Return the starting weights, or None for random weights."""
    if init == "auto":
        return None if is_downloaded(network, "imagenet") else "imagenet"
    return None if init == "random" else init


class Clock:
    """Records the seconds spent on each stage, over all calls of the command in a folder."""

    def __init__(self, out: Path, budget: float) -> None:
        self.path = out / STATE
        self.budget = budget
        self.state: dict[str, Any] = {"seconds": {}}
        if self.path.is_file():
            try:
                self.state = json.loads(self.path.read_text(encoding="utf-8"))
                self.spent()
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise self.unreadable(error) from error

    def unreadable(self, error: Exception) -> RunError:
        """Return the error for a damaged state file."""
        return RunError(f"{self.path} cannot be read ({error}); specify another folder with --out.")

    def spent(self) -> float:
        """Return the seconds spent so far."""
        return float(sum(self.state["seconds"].values()))

    def left(self) -> float:
        """Return the remaining seconds."""
        return self.budget - self.spent()

    def left_in_words(self) -> str:
        """Return the remaining time as a phrase."""
        return f"{in_words(self.left())} left" if self.left() >= 1 else "the budget is used up"

    @contextmanager
    def stage(self, name: str, *, began: float | None = None) -> Iterator[None]:
        """Record the seconds of a stage, also if it is interrupted. `began` is its start if that was before."""
        began = time.monotonic() if began is None else began
        try:
            yield
        finally:
            seconds = self.state["seconds"]
            seconds[name] = seconds.get(name, 0.0) + time.monotonic() - began
            self.save()

    def save(self) -> None:
        """Write the state file."""
        write_whole(self.path, json.dumps(self.state, indent=2) + "\n")
