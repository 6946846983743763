"""What is tried, and how the time is shared: pre-training first, then frozen maps, then fine-tuning of the best."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dovetail.errors import RunError
from dovetail.files.durable import write_whole
from dovetail.networks import lite0
from dovetail.networks.build import build_network
from dovetail.networks.initialise import is_downloaded
from dovetail.networks.network import Network
from dovetail.run.choose import is_vit
from dovetail.train.defaults import best_accelerator
from dovetail.tryout.options import TryOptions

PRETRAINING_SHARE = 0.45  # of the budget, for all pre-trainings together
STATE = "state.json"
LITE0 = (
    "smp.FPN(encoder_name='tu-tf_efficientnet_lite0', decoder_pyramid_channels=128, decoder_segmentation_channels=128)"
)


@dataclass(frozen=True)
class PreTraining:
    """A pre-training that is tried.

    Attributes:
        name: Of its folder.
        method: Of its recipe.
    """

    name: str
    method: str


@dataclass(frozen=True)
class Start:
    """A start of fine-tuning that is compared.

    Attributes:
        title: What it is called.
        run: Name of the pre-training; None for none.
        part: What is loaded of it: encoder or all.
    """

    title: str
    run: str | None
    part: str

    @property
    def tap(self) -> str:
        """The frozen map that shows what the start brings: the decoder's, or the encoder's under a random decoder."""
        return "decoder" if self.part == "all" else "encoder"


@dataclass(frozen=True)
class Plan:
    """A model with its first weights, and what is tried on it.

    Attributes:
        model: Its name.
        init: Weights to start from; None for random ones.
        pretrainings: In the order in which they run.
        starts: What is compared, that without pre-training first.
    """

    model: str
    init: str | None
    pretrainings: tuple[PreTraining, ...]
    starts: tuple[Start, ...]


def plan_of(options: TryOptions) -> Plan:
    """Return what is tried.

    Raises:
        DovetailError: For a model that cannot be built, or one without a decoder.
    """
    model = options.model if options.model != "auto" else default_model()
    network = build_network(model)
    if not network.decoder_prefixes:
        raise RunError(
            f"{model} has no decoder, and the comparison is of whole models; give one such as timm/NAME+fpn."
        )
    init = first_weights(options.init, network)
    base = "dino" if is_vit(network) else "densecl"
    decon = "dino+decon-sl" if is_vit(network) else f"decon-sl-{base}"
    alone = "random weights" if init is None else "ImageNet weights" if init == "imagenet" else str(init)
    runs = [PreTraining("base", base), PreTraining("decon", decon)]
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
    """Return the model where none is named."""
    if lite0.installed_version() is not None:
        return LITE0
    return "smp/fpn/resnet50" if best_accelerator() == "cuda" else "smp/fpn/resnet18"


def first_weights(init: str, network: Network) -> str | None:
    """Return the weights that `init` means; None for random ones."""
    if init == "auto":
        return None if is_downloaded(network, "imagenet") else "imagenet"
    return None if init == "random" else init


class Clock:
    """Seconds that were spent in a folder, over all calls of the command, and what they were spent for."""

    def __init__(self, out: Path, budget: float) -> None:
        self.path = out / STATE
        self.budget = budget
        self.state: dict[str, Any] = {"seconds": {}}
        if self.path.is_file():
            try:
                self.state = json.loads(self.path.read_text(encoding="utf-8"))
                self.spent()
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise RunError(f"{self.path} cannot be read ({error}); name another folder with --out.") from error

    def spent(self) -> float:
        """Return the seconds that are spent."""
        return float(sum(self.state["seconds"].values()))

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.budget - self.spent()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the seconds of a stage, also of one that is stopped."""
        began = time.monotonic()
        try:
            yield
        finally:
            seconds = self.state["seconds"]
            seconds[name] = seconds.get(name, 0.0) + time.monotonic() - began
            self.save()

    def save(self) -> None:
        """Write the state."""
        write_whole(self.path, json.dumps(self.state, indent=2) + "\n")
