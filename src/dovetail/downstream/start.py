"""The starts of fine-tuning: a pre-training run, a part of it, a weight file, or random weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import nn

from dovetail.downstream.options import STARTS
from dovetail.downstream.own import OwnModel, own_model
from dovetail.errors import DovetailError, ModelError, OptionsError, RunError, WeightsError, unknown_name
from dovetail.files.sidecar import normalisation_in
from dovetail.networks.build import build_network
from dovetail.networks.construct import construct
from dovetail.networks.initialise import starting_statistics
from dovetail.networks.network import Network
from dovetail.networks.own import Paths
from dovetail.networks.parts import locate_parts
from dovetail.sizes import Size, as_size, sides, size_in_words
from dovetail.views.plan import IMAGENET_MEAN, IMAGENET_STD
from dovetail.weights.exported import Exported, MatchReport, SelectedPart, read_exported
from dovetail.weights.match_report import faults
from dovetail.weights.matching import fits, load_into, match
from dovetail.weights.start import begin_from

Start = str
"""One of `STARTS`, or the path of a .safetensors file or another run folder."""
OF_A_RUN: Mapping[str, SelectedPart] = {"all": "all", "encoder": "encoder", "decoder": "decoder"}
OF_A_FILE: tuple[SelectedPart, ...] = ("all", "encoder")
TASK_FILE = "task.json"  # every fine-tuned run has this file
MOST_FIRST = ("all", "encoder", "decoder", "imagenet", "random")  # sorted by how much of the run they load


class Pixels(TypedDict):
    """Image size in pixels, and mean and standard deviation of each channel in [0, 1]."""

    size: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Source:
    """The architecture of a model, and its weights if there is a run.

    Attributes:
        constructor: Constructor call of the bare model.
        run: Run or weight file, or None without one.
        mean: Mean of each channel in [0, 1] for normalisation, as in pre-training.
        std: Standard deviation of each channel.
        image_size: Image size of pre-training in pixels: the side of a square, or (height, width).
        in_channels: Number of input channels.
        model: Name of the model without a run, for which the library has weights.
        init: Weights without a run: "imagenet" for the library's weights, a .safetensors file, a run folder, or None
            for random weights.
        own: Module of the user, or None. Its own weights stand for random weights.
    """

    constructor: str
    run: Path | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    image_size: Size
    in_channels: int = 3
    model: str | None = None
    init: str | None = None
    own: OwnModel | None = None

    def pixels(self) -> Pixels:
        """Return image size and normalisation of the model's input."""
        return {"size": self.image_size, "mean": self.mean, "std": self.std}

    def network(self, start: Start = "all") -> Network:
        """Return the model as a network, with the weights of `start`."""
        if self.own is not None:
            network = self.own.network(in_channels=self.in_channels, image_size=self.image_size)
        elif self.model is not None:
            network = build_network(self.model, image_size=self.image_size)
        else:
            module = construct(self.constructor)
            network = build_network(module, in_channels=self.in_channels, image_size=self.image_size)
        patch = network.taps["patches"].stride if "patches" in network.taps else 1
        if any(side % patch for side in sides(self.image_size)):
            raise OptionsError(
                f"The model expects an image size that is a multiple of its patch size ({patch} px), got "
                f"{size_in_words(self.image_size)}."
            )
        if self.run is None:
            begin_from(network, starting(self.init))
        self.load(network.model, start)
        return network

    def load(self, model: nn.Module, start: Start) -> MatchReport | None:
        """Load the weights of `start` into `model` and return the report, or None for random weights.

        Raises:
            DovetailError: There is no run, or the weights do not fit.
        """
        if start == "random":
            return None
        if start == "imagenet":
            return load_into(model, self.imagenet(), part="encoder")
        if start not in OF_A_RUN:
            exported = read_exported(start)
            return load_into(model, exported, part=part_that_fits(model, exported))
        if self.run is None:
            raise OptionsError(f"The start {start!r} needs a pre-training run; specify it with --run.")
        if start == "decoder" and not self.has_decoder:
            raise OptionsError(f"The run {self.run} has no pre-trained decoder; use --start encoder.")
        self.check_fits(model, start)
        return load_into(model, read_exported(self.run), part=self.part_of(start))

    def part_of(self, start: Start) -> SelectedPart:
        """Return the part of the run that a start loads, which is its encoder if it has no pre-trained decoder."""
        return OF_A_RUN[start] if self.has_decoder else "encoder"

    def check_fits(self, model: nn.Module, start: Start) -> None:
        """Raise `WeightsError` if the part of the run that `start` loads does not fit `model`, which is not changed."""
        exported = read_exported(self.run or "")
        report, _ = match(model, exported, part=self.part_of(start))
        if fits(report):
            return
        advice = "omit --model to use the run's model, or specify the model that was pre-trained"
        if self.own is not None or not exported.info:
            advice = "specify the model that was pre-trained with --model"
        why = faults(report, shown=1) or "no tensor has a name that it needs"
        raise WeightsError(f"The weights in {self.run} are those of another model ({why}); {advice}.")

    def imagenet(self) -> Exported:
        """Return the library's ImageNet weights of the encoder, with the names of the bare model."""
        with torch.random.fork_rng(devices=[]):  # all starts continue with the same random numbers
            network = replace(self, init=None).network("random")
            network.constructor = self.constructor  # identifies the weights in the library
            begin_from(network, "imagenet")
        info = {"encoder_prefix": network.encoder_prefix, "decoder_prefixes": list(network.decoder_prefixes)}
        if parts := locate_parts(network.model):
            info = {"encoder_prefix": parts.encoder_prefix, "decoder_prefixes": list(parts.decoder_prefixes)}
        return Exported(network.model.state_dict(), {**info, "untrained": []}, Path("the ImageNet weights"))

    def frozen_encoder_from(self) -> str | None:
        """Return the weights that the run's encoder started from if pre-training kept it frozen, otherwise None."""
        found = {} if self.run is None else read_exported(self.run).info.get("extra", {})
        return str(found["frozen_encoder"]) if "frozen_encoder" in found else None

    def fits_decoder(self, model: nn.Module) -> bool:
        """Return whether the run's decoder fits `model`, by names and shapes."""
        if self.run is None or not self.has_decoder:
            return False
        try:
            report, _ = match(model, read_exported(self.run), part="decoder")
        except DovetailError:  # an encoder alone
            return False
        return bool(report.matched) and not (report.missing or report.unexpected or report.mismatched)

    @property
    def has_decoder(self) -> bool:
        """Return whether the run has pre-trained a decoder, or a part of it."""
        if self.run is None:
            return False
        exported = read_exported(self.run)
        prefixes = tuple(exported.info.get("decoder_prefixes", ()))
        trained = exported.weights.keys() - set(exported.info.get("untrained", ()))
        return any(name.startswith(prefixes) for name in trained)


def source_of(
    run: str | Path | None,
    model: Any,
    *,
    image_size: Size | None = None,
    init: str | None = None,
    encoder: Paths = None,
) -> Source:
    """Return the source for a run folder, or for the name of a model with weights from `init`.

    With the name of its model, `run` may also be a weight file of another program, whose encoder is used. `model` may
    also be the module of the user, or its import path, with the paths of its parts.

    Raises:
        DovetailError: Neither is specified, a name is unknown, the run has a custom module and `model` is missing, or
            `run` is combined with `init`.
    """
    paths = {} if run is None else read_exported(run).info.get("paths", {})
    own = own_model(model, paths, encoder=encoder)
    if own is not None:
        return own_source(own, run, image_size=image_size, init=init)
    if model is not None and not isinstance(model, str):
        raise ModelError(f"model expects a name or a torch.nn.Module, got {type(model).__name__}.")
    if paths:
        raise ModelError(f"The model of {run} is your own module; pass the module as model, too.")
    if run is not None and init is not None:
        raise OptionsError("--run and --init both specify weights; omit --init, or use --model instead of --run.")
    if run is None and model is None:
        raise OptionsError("--run is missing; specify a pre-training run, or a --model with random weights.")
    if run is None:
        network = build_network(model or "", image_size=image_size or 224)
        size, channels = network.image_size, network.in_channels
        mean, std = starting_statistics(network, starting(init)) or (IMAGENET_MEAN, IMAGENET_STD)
        return Source(network.constructor, None, mean, std, size, channels, model, init)
    exported = read_exported(run)
    if model is not None and not exported.info and not (exported.path.parent / TASK_FILE).is_file():
        # A weight file of another program does not describe its model, so --model does.
        network = build_network(model, image_size=image_size or 224)
        size, channels = network.image_size, network.in_channels
        return Source(network.constructor, Path(run), IMAGENET_MEAN, IMAGENET_STD, size, channels)
    info = described(exported)
    constructor = info["constructor"]
    if model is not None:
        constructor = build_network(
            model, in_channels=info["in_channels"], image_size=as_size(info["image_size"])
        ).constructor
    norm = info.get("normalisation") or {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return Source(
        constructor,
        Path(run),
        tuple(norm["mean"]),
        tuple(norm["std"]),
        image_size or as_size(info["image_size"]),
        int(info["in_channels"]),
    )


def own_source(own: OwnModel, run: str | Path | None, *, image_size: Size | None, init: str | None) -> Source:
    """Return the source for a module of the user, with the weights of a run if there is one."""
    if init is not None:
        raise OptionsError("--init does not apply to your own module; load the weights into the module first.")
    info: dict[str, Any] = {} if run is None else described(read_exported(run))
    size, channels = image_size or as_size(info.get("image_size", 224)), int(info.get("in_channels", 3))
    constructor = own.network(in_channels=channels, image_size=size).constructor
    mean, std = normalisation_in(info, channels) or (IMAGENET_MEAN, IMAGENET_STD)
    return Source(constructor, None if run is None else Path(run), mean, std, size, channels, own=own)


def channels_of_run(run: str | Path | None) -> int:
    """Return the number of input channels of a run's model, or 3 without a run."""
    return 3 if run is None else int(read_exported(run).info.get("in_channels", 3))


def values_of_run(run: str | Path | None) -> tuple[float, ...]:
    """Return the value range of a run for images with more than 8 bits, or () for the default."""
    extra = {} if run is None else read_exported(run).info.get("extra", {})
    return tuple(map(float, extra.get("value_range", ())))


def described(exported: Exported) -> dict[str, Any]:
    """Return the description of an exported model. Raise `DovetailError` for bare files and fine-tuned runs."""
    if not exported.info and (exported.path.parent / TASK_FILE).is_file():
        raise RunError(f"{exported.path.parent} contains a fine-tuned model; specify its pre-training run.")
    if not exported.info:
        raise WeightsError(
            f"{exported.path} has no description of its model; specify the model with --model, or use a run folder."
        )
    return exported.info


def weights_mark(source: Source) -> str:
    """Return a short hash of a source's weights, which identifies cached features."""
    if source.run is not None:
        return file_mark(read_exported(source.run).path)
    init = starting(source.init)
    return file_mark(init) if isinstance(init, Path) else init or "random"


def starting(init: str | None) -> Path | str | None:
    """Resolve `init` for `initialise`: a run folder is resolved to its exported weights."""
    if init is None or init == "imagenet":
        return init
    path = Path(init)
    return read_exported(path).path if path.is_dir() else path


def file_mark(path: Path) -> str:
    """Return a short hash of a file's content."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]


def part_that_fits(model: nn.Module, exported: Exported) -> SelectedPart:
    """Return the largest part of external weights that fits a model: "all" or "encoder".

    Raises:
        WeightsError: Neither part fits.
    """
    for part in OF_A_FILE:
        report, _ = match(model, exported, part=part)
        if report.matched and not (report.missing or report.unexpected or report.mismatched):
            return part
    raise WeightsError(f"{exported.path} fits neither the whole model nor its encoder; specify weights of this model.")


def marked(start: Start) -> str:
    """Return the name of a start among finished trials. The name of a file depends on its content."""
    return start if start in STARTS or not Path(start).exists() else f"{start}#{file_mark(read_exported(start).path)}"


def most_first(start: Start) -> float:
    """Return a sort key of a start by how much of the run it loads. Files come before starts that load nothing."""
    return MOST_FIRST.index(start) if start in MOST_FIRST else MOST_FIRST.index("imagenet") - 0.5


def chosen_starts(starts: Sequence[str], source: Source, *, target: nn.Module) -> tuple[Start, ...]:
    """Resolve the starts. "auto" is all of the run that fits, or "random" without a run.

    Args:
        starts: Starts as specified.
        source: Run, or name of a model.
        target: Module that the weights would be loaded into, on any device.

    Raises:
        DovetailError: A start is unknown, there are none, or a start needs a run or a decoder that does not exist.
    """
    fits = source.fits_decoder(target)
    best: Start = "random" if source.run is None else "all" if fits else "encoder"
    known: dict[str, Start] = {"auto": best, **{name: name for name in STARTS}}
    if not starts:
        raise OptionsError("--start is empty; specify random, imagenet, encoder, decoder or all.")
    for name in starts:
        if name not in known and Path(name).exists():
            part_that_fits(target, read_exported(name))
            known[name] = name
        if name not in known:
            raise unknown_name("start", name, known)
        if name in OF_A_RUN and source.run is None:
            raise OptionsError(
                f"The start {name!r} needs a pre-training run; specify it with --run, or use --start random."
            )
        if name == "decoder" and not source.has_decoder:
            raise OptionsError(f"The run {source.run} has no pre-trained decoder; use --start encoder.")
        if name in ("decoder", "all") and source.has_decoder and not fits:
            raise OptionsError(
                f"The model to fine-tune has another decoder than the run {source.run}; use --start encoder."
            )
    chosen = tuple(dict.fromkeys(known[name] for name in starts))
    for start in chosen:
        if start in OF_A_RUN:
            source.check_fits(target, start)
    return chosen
