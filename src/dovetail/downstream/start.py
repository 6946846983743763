"""What fine-tuning starts from: a pre-training run, a part of it, or a model's name and random weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import nn

from dovetail.errors import DovetailError, OptionsError, RunError, WeightsError, unknown_name
from dovetail.networks.build import build_network
from dovetail.networks.construct import construct
from dovetail.networks.initialise import starting_statistics
from dovetail.networks.network import Network
from dovetail.networks.parts import locate_parts
from dovetail.views.plan import IMAGENET_MEAN, IMAGENET_STD
from dovetail.weights.exported import Exported, MatchReport, SelectedPart, read_exported
from dovetail.weights.matching import load_into, match
from dovetail.weights.start import begin_from

Start = str
"""One of `STARTS`, or the path of a .safetensors file or of another run's folder."""
STARTS = ("random", "imagenet", "encoder", "decoder", "all")
OF_A_RUN: Mapping[str, SelectedPart] = {"all": "all", "encoder": "encoder", "decoder": "decoder"}
OF_A_FILE: tuple[SelectedPart, ...] = ("all", "encoder")
TASK_FILE = "task.json"  # which every fine-tuned run has
MOST_FIRST = ("all", "encoder", "decoder", "imagenet", "random")  # by how much of the run they load


class Pixels(TypedDict):
    """Side in pixels, and each channel's mean and deviation in [0, 1]."""

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


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
        model: The model's name without a run, by which its library knows its weights.
        init: Where weights come from without a run: "imagenet" for the library's own, a .safetensors file or a run's
            folder; None for random ones.
    """

    constructor: str
    run: Path | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: int
    in_channels: int = 3
    model: str | None = None
    init: str | None = None

    def pixels(self) -> Pixels:
        """Return how images become what the model takes."""
        return {"size": self.image_size, "mean": self.mean, "std": self.std}

    def network(self, start: Start = "all") -> Network:
        """Return the model as a network, with the weights that `start` says."""
        if self.model is not None:
            network = build_network(self.model, image_size=self.image_size)
        else:
            module = construct(self.constructor)
            network = build_network(module, in_channels=self.in_channels, image_size=self.image_size)
        patch = network.taps["patches"].stride if "patches" in network.taps else 1
        if self.image_size % patch:
            raise OptionsError(
                f"The image size is {self.image_size} px, but the model's patches are {patch} px; choose a multiple."
            )
        if self.run is None:
            begin_from(network, starting(self.init))
        self.load(network.model, start)
        return network

    def load(self, model: nn.Module, start: Start) -> MatchReport | None:
        """Load into `model` what `start` says and return the report; None for a random start.

        Raises:
            DovetailError: Without a run, and where the weights do not fit.
        """
        if start == "random":
            return None
        if start == "imagenet":
            return load_into(model, self.imagenet(), part="encoder")
        if start not in OF_A_RUN:
            exported = read_exported(start)
            return load_into(model, exported, part=part_that_fits(model, exported))
        if self.run is None:
            raise OptionsError(f"Starting from {start!r} needs a pre-training run; give its folder with --run.")
        if not self.has_decoder:
            if start == "decoder":
                raise OptionsError(f"The run {self.run} has pre-trained no decoder; start from its encoder.")
            start = "encoder"
        return load_into(model, read_exported(self.run), part=OF_A_RUN[start])

    def imagenet(self) -> Exported:
        """Return the encoder's ImageNet weights, as its library has them, under the names of the bare model."""
        with torch.random.fork_rng(devices=[]):  # every start is to go on with the same random numbers
            network = replace(self, init=None).network("random")
            network.constructor = self.constructor  # by which its library knows the weights
            begin_from(network, "imagenet")
        info = {"encoder_prefix": network.encoder_prefix, "decoder_prefixes": list(network.decoder_prefixes)}
        if parts := locate_parts(network.model):
            info = {"encoder_prefix": parts.encoder_prefix, "decoder_prefixes": list(parts.decoder_prefixes)}
        return Exported(network.model.state_dict(), {**info, "untrained": []}, Path("the ImageNet weights"))

    def fits_decoder(self, model: nn.Module) -> bool:
        """Whether the run's decoder goes into `model`, tensor by tensor; its values are not looked at."""
        if self.run is None or not self.has_decoder:
            return False
        try:
            report, _ = match(model, read_exported(self.run), part="decoder")
        except DovetailError:  # an encoder alone
            return False
        return bool(report.matched) and not (report.missing or report.unexpected or report.mismatched)

    @property
    def has_decoder(self) -> bool:
        """Whether the run has pre-trained a decoder, or a part of one."""
        if self.run is None:
            return False
        exported = read_exported(self.run)
        prefixes = tuple(exported.info.get("decoder_prefixes", ()))
        trained = exported.weights.keys() - set(exported.info.get("untrained", ()))
        return any(name.startswith(prefixes) for name in trained)


def source_of(
    run: str | Path | None, model: str | None, *, image_size: int | None = None, init: str | None = None
) -> Source:
    """Return the source that a run's folder, or a model's name with the weights that `init` names, means.

    A file of another program's weights may stand in the place of the run, beside the name of its model: its encoder is
    taken.

    Raises:
        DovetailError: For neither or an unknown one, for a run of a module of the user's own, and for a run together
            with `init`.
    """
    if run is not None and init is not None:
        raise OptionsError("A run brings its own weights; leave --init out, or give --model instead of --run.")
    if run is None and model is None:
        raise OptionsError("No run was named; give a pre-training run with --run, or --model for random weights.")
    if run is None:
        network = build_network(model or "", image_size=image_size or 224)
        size, channels = network.image_size, network.in_channels
        mean, std = starting_statistics(network, starting(init)) or (IMAGENET_MEAN, IMAGENET_STD)
        return Source(network.constructor, None, mean, std, size, channels, model, init)
    exported = read_exported(run)
    if model is not None and not exported.info and not (exported.path.parent / TASK_FILE).is_file():
        # A file of another program, which says nothing of its model: the name does.
        network = build_network(model, image_size=image_size or 224)
        size, channels = network.image_size, network.in_channels
        return Source(network.constructor, Path(run), IMAGENET_MEAN, IMAGENET_STD, size, channels)
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


def values_of_run(run: str | Path | None) -> tuple[float, ...]:
    """Return black and white of images with more than 8 bits as a run has them; () for those of their formats."""
    extra = {} if run is None else read_exported(run).info.get("extra", {})
    return tuple(map(float, extra.get("value_range", ())))


def described(exported: Exported) -> dict[str, Any]:
    """Return what an export says about its model; raise `DovetailError` for a bare file, and a fine-tuned run."""
    if not exported.info and (exported.path.parent / TASK_FILE).is_file():
        raise RunError(f"{exported.path.parent} holds a fine-tuned model; name its pre-training run.")
    if not exported.info:
        raise WeightsError(
            f"{exported.path} does not say how its model is built; name the model with --model, or give the folder of "
            "a run."
        )
    return exported.info


def weights_mark(source: Source) -> str:
    """Return a short hash of a source's weights, so that features kept on disk are those of this model."""
    if source.run is not None:
        return file_mark(read_exported(source.run).path)
    init = starting(source.init)
    return file_mark(init) if isinstance(init, Path) else init or "random"


def starting(init: str | None) -> Path | str | None:
    """Return what `init` names as `initialise` takes it: a run's folder stands for the weights that it exported."""
    if init is None or init == "imagenet":
        return init
    path = Path(init)
    return read_exported(path).path if path.is_dir() else path


def file_mark(path: Path) -> str:
    """Return a short hash of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def part_that_fits(model: nn.Module, exported: Exported) -> SelectedPart:
    """Return the part of weights from elsewhere that a model takes whole: all, or the encoder.

    Raises:
        WeightsError: Where neither fits.
    """
    for part in OF_A_FILE:
        report, _ = match(model, exported, part=part)
        if report.matched and not (report.missing or report.unexpected or report.mismatched):
            return part
    raise WeightsError(f"{exported.path} fits neither the whole model nor its encoder; name weights of this model.")


def marked(start: Start) -> str:
    """Return a start's name among finished trials; that of a file changes with its content."""
    return start if start in STARTS or not Path(start).exists() else f"{start}#{file_mark(read_exported(start).path)}"


def most_first(start: Start) -> float:
    """Return a start's place by how much of the run it loads; a file comes before what loads nothing of it."""
    return MOST_FIRST.index(start) if start in MOST_FIRST else MOST_FIRST.index("imagenet") - 0.5


def chosen_starts(starts: Sequence[str], source: Source, *, target: nn.Module) -> tuple[Start, ...]:
    """Return the starting points asked for; "auto" is all of the run that fits, "random" without a run.

    Args:
        starts: As asked for.
        source: The run, or a model's name.
        target: What the weights would go into, on any device.

    Raises:
        DovetailError: For an unknown one, none, one that needs a run where there is none, and one that needs a decoder
            which the run has not, or which the model that is fine-tuned has not.
    """
    fits = source.fits_decoder(target)
    best: Start = "random" if source.run is None else "all" if fits else "encoder"
    known: dict[str, Start] = {"auto": best, **{name: name for name in STARTS}}
    if not starts:
        raise OptionsError("No starting point was named; give --start random, imagenet, encoder, decoder or all.")
    for name in starts:
        if name not in known and Path(name).exists():
            part_that_fits(target, read_exported(name))
            known[name] = name
        if name not in known:
            raise unknown_name("starting point", name, known)
        if name in OF_A_RUN and source.run is None:
            raise OptionsError(
                f"Starting from {name!r} needs a pre-training run; give its folder with --run, or --start random."
            )
        if name == "decoder" and not source.has_decoder:
            raise OptionsError(f"The run {source.run} has pre-trained no decoder; start from its encoder.")
        if name in ("decoder", "all") and source.has_decoder and not fits:
            raise OptionsError(
                f"The model that is fine-tuned has another decoder than the run {source.run}; give --start encoder."
            )
    return tuple(dict.fromkeys(known[name] for name in starts))
