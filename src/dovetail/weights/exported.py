"""Exported weights of a run: writing and reading exported folders, and the report of what fits a model.

An exported folder contains

* `model.safetensors`: the whole `state_dict` of the user's model, with unchanged names;
* `encoder.safetensors`, `decoder.safetensors`: one part each, with the names of the part's own `state_dict`;
* `model.json`: the constructor call, the prefixes of the parts, and the tensors that pre-training did not train.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dovetail.errors import WeightsError, counted, tell
from dovetail.files.durable import write_whole
from dovetail.files.missing import about_missing
from dovetail.files.sidecar import SIDECAR, read_sidecar
from dovetail.files.tensors import write_tensors
from dovetail.networks.construct import at_size, construct
from dovetail.networks.network import Network
from dovetail.networks.parts import Parts, locate_parts, untrained_names
from dovetail.sizes import Size, as_size
from dovetail.weights.checkpoint import SUFFIXES, read_weights
from dovetail.weights.fitting import fitted, grids_of

SelectedPart = Literal["all", "encoder", "decoder"]
MODEL_FILE = "model.safetensors"


@dataclass(frozen=True)
class Exported:
    """The contents of an exported folder. `info` is the content of `model.json`, empty for a bare weight file."""

    weights: dict[str, Tensor]
    info: dict[str, Any]
    path: Path

    @property
    def image_size(self) -> Size | None:
        """Image size of the model in pixels, if known."""
        return as_size(self.info["image_size"]) if "image_size" in self.info else None

    @property
    def parts(self) -> Parts | None:
        """Prefixes of the parts in the names of `weights`, or None for a bare file."""
        info = self.info
        return Parts(info["encoder_prefix"], tuple(info["decoder_prefixes"])) if info else None


@dataclass(frozen=True)
class Mismatch:
    """A tensor whose shape in the file differs from its shape in the model."""

    name: str
    found: tuple[int, ...]
    wanted: tuple[int, ...]


@dataclass(frozen=True)
class MatchReport:
    """The result of loading weights into a model.

    Names are those of the model's tensors, except for `unexpected` and `left_over`, which are names in the file.

    Attributes:
        matched: Loaded tensors.
        missing: Tensors of the model that are missing in the file.
        unexpected: Tensors in the file that belong to the network, but are not in the model.
        mismatched: Tensors whose shapes differ.
        fresh: Tensors that keep the model's values: pre-training did not train them (task heads, unused branches), or
            they belong to a decoder that the file does not have.
        resampled: Loaded tensors whose positions were resampled to the model's grid.
        channels: Loaded first convolutions that were adapted to the model's number of input channels.
        left_over: Tensors in the file that the model does not need: classifiers, projectors, other copies.
        precision: Dtypes in the file other than float32, such as "float16".
        source: The file, the library that named its tensors, and their prefix.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[Mismatch, ...] = ()
    fresh: tuple[str, ...] = ()
    resampled: tuple[str, ...] = ()
    channels: tuple[str, ...] = ()
    left_over: tuple[str, ...] = ()
    precision: str = ""
    source: str = ""

    def __str__(self) -> str:
        """Return one line per kind of result, with the first names."""
        precision = f", stored as {self.precision}" if self.precision else ""
        lines = [
            f"{counted(len(self.matched), 'tensor')} loaded{f' from {self.source}' if self.source else ''}{precision}"
        ]
        for what, names in (
            ("resampled to another grid", self.resampled),
            ("adapted to another number of channels", self.channels),
            ("kept as initialised", self.fresh),
            ("missing in the file", self.missing),
            ("unexpected in the file", self.unexpected),
            ("with another shape", tuple(one.name for one in self.mismatched)),
            ("unused in the file", self.left_over),
        ):
            if names:
                lines.append(f"{len(names)} {what}: {some(names)}")
        return "\n".join(lines)


def save_exported(
    network: Network,
    folder: Path,
    *,
    method: str,
    extra: Mapping[str, Any],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> None:
    """Write the model of a network to an exported folder (see the module's docstring).

    Args:
        network: Network to export.
        folder: Output folder. It is created if it is missing, and its files are replaced.
        method: Name of the method.
        extra: Further plain values for `model.json`, stored under "extra".
        mean: Mean of each channel that images were normalised with, for values in [0, 1].
        std: Standard deviation of each channel.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: _plain(value) for name, value in network.model.state_dict().items()}
    parts = locate_parts(network.model) or Parts(network.encoder_prefix, network.decoder_prefixes)
    normalisation = {"mean": list(mean), "std": list(std)} if mean is not None and std is not None else None
    info = {
        **_description(network, parts, weights),
        "normalisation": normalisation,
        "method": method,
        "versions": {"dovetail": version("dovetail-ssl"), "torch": torch.__version__},
        "extra": dict(extra),
    }
    write_tensors(weights, folder / MODEL_FILE)
    for part in ("encoder", "decoder"):
        chosen = part_of(weights, parts, part)
        if chosen:
            write_tensors(chosen, folder / f"{part}.safetensors")
    write_whole(folder / SIDECAR, json.dumps(info, indent=2) + "\n")


def _description(network: Network, parts: Parts, names: Iterable[str]) -> dict[str, Any]:
    """Return the entries of `model.json` that describe the model."""
    return {
        "format": 1,
        "constructor": network.constructor,
        "class": f"{type(network.model).__module__}.{type(network.model).__qualname__}",
        "in_channels": network.in_channels,
        "image_size": network.image_size,
        "encoder_prefix": parts.encoder_prefix,
        "decoder_prefixes": list(parts.decoder_prefixes),
        "decoder_root": parts.decoder_root,
        **({"paths": network.paths()} if network.paths() else {}),
        "untrained": untrained_names(
            names,
            parts,
            parameters=[name for name, _ in network.model.named_parameters(remove_duplicate=False)],
            unreached=network.unreached,
        ),
    }


def part_of(weights: Mapping[str, Tensor], parts: Parts, part: str) -> dict[str, Tensor]:
    """Return the tensors of one part by local name."""
    located = {name: parts.split(name) for name in weights}
    return {local: weights[name] for name, (where, local) in located.items() if where == part}


def _plain(value: Tensor) -> Tensor:
    """Return a contiguous copy of a tensor on the CPU. Floating-point tensors become float32."""
    value = value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype)
    return value.clone(memory_format=torch.contiguous_format)


def read_exported(source: str | Path, *, words: Collection[str] = ()) -> Exported:
    """Read a run folder, an exported folder, or a weight file (a .safetensors file with or without `model.json`).

    Args:
        source: Path.
        words: Words that the caller takes instead of a path, to suggest the one that was meant.

    Raises:
        WeightsError: There are no weights at `source`, or they cannot be read.
    """
    path = Path(source)
    if path.is_dir():
        found = model_file_in(path)
        if found is None:
            raise WeightsError(
                f"{path} contains no {MODEL_FILE}, and neither does its folder 'exported'; finish the run, or export a "
                "stopped one with `dovetail export --run RUN --checkpoint last`."
            )
        path = found
    if not path.is_file() and path.suffix not in SUFFIXES:
        raise WeightsError(
            f"The file or folder {path} does not exist (expected a run, an exported folder or a weight file); "
            f"{about_missing(path, words)}"
        )
    weights = read_weights(path)
    info = read_sidecar(path.parent / SIDECAR) if path.suffix == ".safetensors" else {}
    if info and path.name in ("encoder.safetensors", "decoder.safetensors"):
        info = _info_of_part(info, path.stem)
    return Exported(weights, info, path)


def model_file_in(folder: Path) -> Path | None:
    """Return the file of the whole model in an exported folder or a run folder, or None if there is none."""
    return next((path for path in (folder / MODEL_FILE, folder / "exported" / MODEL_FILE) if path.is_file()), None)


def _info_of_part(info: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Convert the sidecar of the whole model to that of one part, whose names are local."""
    parts = Parts(info["encoder_prefix"], tuple(info["decoder_prefixes"]))
    located = [parts.split(name) for name in info["untrained"]]
    decoders = [""] if part == "decoder" else []  # all names in this file belong to the decoder
    return {
        **info,
        "encoder_prefix": "",
        "decoder_prefixes": decoders,
        "untrained": [local for where, local in located if where == part],
    }


def some(names: Sequence[str], count: int = 4) -> str:
    """Return the first names as a comma-separated list."""
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")


def load(source: str | Path, *, image_size: Size | None = None) -> nn.Module:
    """Build the exported model with its constructor call and load its weights strictly (see `dovetail.load`).

    Raises:
        DovetailError: The source is a bare weight file, the model is a custom module (use `load_into`), or it does not
            support the image size.
    """
    exported = read_exported(source)
    if not exported.info or exported.path.name != MODEL_FILE:
        raise WeightsError(
            f"{exported.path} has no constructor call for its model; build the model yourself and use load_into."
        )
    call = exported.info["constructor"]
    model = construct(call if image_size is None else at_size(call, image_size))
    load_whole(model, exported.weights, exported.path, image_size=exported.image_size)
    return model


def load_whole(
    model: nn.Module, weights: Mapping[str, Tensor], path: Path, *, image_size: Size | None = None
) -> MatchReport:
    """Load all weights strictly into a model that may have another image size, and print the resampled tensors.

    Args:
        model: Model to load the weights into.
        weights: Weights with the names of the model. Positions may have another grid.
        path: Path of the file, for error messages.
        image_size: Image size of the weights, for positions on a grid that is not square.

    Raises:
        WeightsError: A name or a shape differs.
    """
    state = model.state_dict()
    grids = grids_of(model, image_size)
    fitting = {
        name: fitted(name, weights[name], tuple(value.shape), first_convolution=False, grids=grids)
        for name, value in state.items()
        if name in weights
    }
    values = {name: one.value for name, one in fitting.items() if one is not None}
    if not values.keys() == state.keys() == weights.keys():
        raise WeightsError(
            f"The weights in {path} do not fit {type(model).__name__} as the installed version of its library builds "
            "it; install the version that they were exported with, or use load_into."
        )
    model.load_state_dict(values, strict=True)
    resampled = tuple(name for name, one in fitting.items() if one is not None and one.how == "resampled")
    report = MatchReport(tuple(fitting), resampled=resampled, source=path.name)
    if resampled:
        tell(report)
    return report
