"""What fine-tuning starts from: a pre-training run, a part of it, or a model's name and random weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from dovetail.errors import DovetailError, unknown_name
from dovetail.networks.build import build_network
from dovetail.networks.construct import construct
from dovetail.networks.network import Network
from dovetail.views.plan import IMAGENET_MEAN, IMAGENET_STD
from dovetail.weights import Exported, MatchReport, load_into, read_exported

Start = Literal["random", "encoder", "decoder", "all"]
STARTS: tuple[Start, ...] = ("random", "encoder", "decoder", "all")


@dataclass(frozen=True)
class Source:
    """A model's architecture, and weights where there is a run.

    Attributes:
        constructor: The call that builds the bare model.
        run: Where weights come from; None for random ones only.
        mean: Of each channel in [0, 1], as pre-training normalised.
        std: Deviation of each channel.
        image_size: Side in pixels that the model was pre-trained with.
        in_channels: Channels of the pixels.
    """

    constructor: str
    run: Path | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    in_channels: int = 3

    def network(self, start: Start = "all") -> Network:
        """Return the model as a network, with the weights that `start` says."""
        network = build_network(construct(self.constructor), in_channels=self.in_channels, image_size=self.image_size)
        patch = network.taps["patches"].stride if "patches" in network.taps else 1
        if self.image_size % patch:
            raise DovetailError(
                f"The image size is {self.image_size} px, but the model's patches are {patch} px; choose a multiple."
            )
        self.load(network.model, start)
        return network

    def load(self, model: nn.Module, start: Start) -> MatchReport | None:
        """Load into `model` what `start` says and return the report; None for a random start.

        Raises:
            DovetailError: Without a run, and where the weights do not fit.
        """
        if start == "random":
            return None
        if self.run is None:
            raise DovetailError(f"Starting from {start!r} needs a pre-training run; give its folder with --run.")
        if not self.has_decoder:
            if start == "decoder":
                raise DovetailError(f"The run {self.run} has pre-trained no decoder; start from its encoder.")
            start = "encoder"
        return load_into(model, self.run, part=start)

    @property
    def has_decoder(self) -> bool:
        """Whether the run's model has a decoder."""
        return self.run is not None and bool(read_exported(self.run).info.get("decoder_prefixes"))


def source_of(run: str | Path | None, model: str | None, *, image_size: int | None = None) -> Source:
    """Return the source that a run's folder or a model's name means.

    Raises:
        DovetailError: For neither or an unknown one, and for a run of a module of the user's own.
    """
    if run is None and model is None:
        raise DovetailError("No run was named; give a pre-training run with --run, or --model for random weights.")
    if run is None:
        network = build_network(model or "", image_size=image_size or 224)
        return Source(network.constructor, None, IMAGENET_MEAN, IMAGENET_STD, network.image_size)
    exported = read_exported(run)
    info = described(exported)
    constructor = info["constructor"]
    if model is not None:
        constructor = build_network(model, in_channels=info["in_channels"], image_size=info["image_size"]).constructor
    norm = info.get("normalisation") or {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return Source(
        constructor,
        Path(run),
        tuple(norm["mean"]),
        tuple(norm["std"]),
        image_size or int(info["image_size"]),
        int(info["in_channels"]),
    )


def described(exported: Exported) -> dict[str, Any]:
    """Return what an export says about its model; raise `DovetailError` for a bare file."""
    if not exported.info:
        raise DovetailError(f"{exported.path} does not say how its model is built; give the run's folder.")
    return exported.info


def weights_mark(source: Source) -> str:
    """Return a short hash of a source's weights, so that features kept on disk are those of this model."""
    if source.run is None:
        return "random"
    return hashlib.sha256(read_exported(source.run).path.read_bytes()).hexdigest()[:12]


def check_starts(starts: Sequence[str], source: Source) -> tuple[Start, ...]:
    """Return the starting points asked for.

    Raises:
        DovetailError: For an unknown one, none, or one that needs a run where there is none.
    """
    known: dict[str, Start] = {name: name for name in STARTS}
    for name in starts:
        if name not in known:
            raise unknown_name("starting point", name, STARTS)
        if name != "random" and source.run is None:
            raise DovetailError(f"Starting from {name!r} needs a pre-training run; give its folder with --run.")
    if not starts:
        raise DovetailError("No starting point was named; give --start random, encoder, decoder or all.")
    return tuple(known[name] for name in dict.fromkeys(starts))
