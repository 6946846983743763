"""Weights out of a run: exported folders, reading them, and the report on what fits a model.

An exported folder holds

* `model.safetensors`: the whole `state_dict` of the user's model, names unchanged;
* `encoder.safetensors`, `decoder.safetensors`: one part each, named as in the part's own `state_dict`;
* `model.json`: the constructor call, where the parts are, and which tensors pre-training never trained.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dovetail.errors import WeightsError, counted, tell
from dovetail.files.durable import write_whole
from dovetail.files.sidecar import SIDECAR, read_sidecar
from dovetail.files.tensors import write_tensors
from dovetail.networks.construct import at_size, construct
from dovetail.networks.network import Network
from dovetail.networks.parts import Parts, locate_parts, untrained_names
from dovetail.weights.checkpoint import SUFFIXES, read_weights
from dovetail.weights.fitting import fitted

SelectedPart = Literal["all", "encoder", "decoder"]
MODEL_FILE = "model.safetensors"


@dataclass(frozen=True)
class Exported:
    """An exported folder, read. `info` is the content of `model.json`, empty for a bare file of weights."""

    weights: dict[str, Tensor]
    info: dict[str, Any]
    path: Path

    @property
    def parts(self) -> Parts | None:
        """Where the parts are in the names of `weights`; None for a bare file."""
        info = self.info
        return Parts(info["encoder_prefix"], tuple(info["decoder_prefixes"])) if info else None


@dataclass(frozen=True)
class Mismatch:
    """A tensor whose shape in the file differs from the model's."""

    name: str
    found: tuple[int, ...]
    wanted: tuple[int, ...]


@dataclass(frozen=True)
class MatchReport:
    """What loading did, by names of the target's tensors (`unexpected` and `left_over`: by names in the file).

    Attributes:
        matched: Loaded.
        missing: In the target, but not in the file.
        unexpected: Of the network and in the file, but not in the target.
        mismatched: In both, of different shapes.
        fresh: Left as they are in the target: never trained by pre-training (task heads, unused branches), or of a
            decoder that the file does not have.
        resampled: Loaded, with positions resampled to the target's grid.
        channels: Loaded, with the first convolution made for the target's number of channels.
        left_over: In the file and of no use to the target: classifiers, projectors, other copies of the network.
        precision: Number formats of the file where they are others than float32, such as "float16".
        source: The file, whose names it has, and under which prefix.
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
        """Return a line for each kind, with the first names of it."""
        precision = f", stored as {self.precision}" if self.precision else ""
        lines = [
            f"{counted(len(self.matched), 'tensor')} loaded{f' from {self.source}' if self.source else ''}{precision}"
        ]
        for what, names in (
            ("resampled to another grid", self.resampled),
            ("made for another number of channels", self.channels),
            ("left fresh", self.fresh),
            ("missing in the file", self.missing),
            ("unexpected in the file", self.unexpected),
            ("of another shape", tuple(one.name for one in self.mismatched)),
            ("left over in the file", self.left_over),
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
    """Write a network's model into `folder` as described above.

    Args:
        network: The branch to export.
        folder: Made when it is missing; files in it are replaced.
        method: Name of the recipe.
        extra: Further plain values for `model.json`, under "extra".
        mean: Per-channel mean that pixels were normalised with, in [0, 1].
        std: Per-channel deviation.
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
    """Return what `model.json` says about the model itself."""
    return {
        "format": 1,
        "constructor": network.constructor,
        "class": f"{type(network.model).__module__}.{type(network.model).__qualname__}",
        "in_channels": network.in_channels,
        "image_size": network.image_size,
        "encoder_prefix": parts.encoder_prefix,
        "decoder_prefixes": list(parts.decoder_prefixes),
        "decoder_root": parts.decoder_root,
        "untrained": untrained_names(
            names,
            parts,
            parameters=[name for name, _ in network.model.named_parameters(remove_duplicate=False)],
            unreached=network.unreached,
        ),
    }


def part_of(weights: Mapping[str, Tensor], parts: Parts, part: str) -> dict[str, Tensor]:
    """Return the tensors of one part under their local names."""
    located = {name: parts.split(name) for name in weights}
    return {local: weights[name] for name, (where, local) in located.items() if where == part}


def _plain(value: Tensor) -> Tensor:
    """Return a tensor of its own memory on the CPU; floating-point ones as float32."""
    value = value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype)
    return value.clone(memory_format=torch.contiguous_format)


def read_exported(source: str | Path) -> Exported:
    """Read a run folder, an exported folder, or a file of weights, a .safetensors one with or without `model.json`.

    Raises:
        WeightsError: When there is nothing to read.
    """
    path = Path(source)
    if path.is_dir():
        places = [path / MODEL_FILE, path / "exported" / MODEL_FILE]
        found = next((place for place in places if place.is_file()), None)
        if found is None:
            raise WeightsError(f"{path} holds no {MODEL_FILE}, nor does its folder 'exported'; has the run exported?")
        path = found
    if not path.is_file() and path.suffix not in SUFFIXES:
        raise WeightsError(f"There is no file or folder {path}; give a run, an exported folder or a file of weights.")
    weights = read_weights(path)
    info = read_sidecar(path.parent / SIDECAR) if path.suffix == ".safetensors" else {}
    if info and path.name in ("encoder.safetensors", "decoder.safetensors"):
        info = _info_of_part(info, path.stem)
    return Exported(weights, info, path)


def _info_of_part(info: Mapping[str, Any], part: str) -> dict[str, Any]:
    """Return the sidecar of the whole model as that of one part's file, whose names are local."""
    parts = Parts(info["encoder_prefix"], tuple(info["decoder_prefixes"]))
    located = [parts.split(name) for name in info["untrained"]]
    decoders = [""] if part == "decoder" else []  # every local name of the file is the decoder's
    return {
        **info,
        "encoder_prefix": "",
        "decoder_prefixes": decoders,
        "untrained": [local for where, local in located if where == part],
    }


def some(names: Sequence[str], count: int = 4) -> str:
    """Return the first of several names in words."""
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")


def load(source: str | Path, *, image_size: int | None = None) -> nn.Module:
    """Build the exported model from its constructor call and load its weights strictly; see `dovetail.load`.

    Raises:
        DovetailError: For a bare file, a module of the user's own (use `load_into`), or a size the model cannot have.
    """
    exported = read_exported(source)
    if not exported.info or exported.path.name != MODEL_FILE:
        raise WeightsError(f"{exported.path} does not say how its model is built; build it and use load_into.")
    call = exported.info["constructor"]
    model = construct(call if image_size is None else at_size(call, image_size))
    load_whole(model, exported.weights, exported.path)
    return model


def load_whole(model: nn.Module, weights: Mapping[str, Tensor], path: Path) -> MatchReport:
    """Load a whole state strictly into a model that may be built for another image size, and print what was resampled.

    Args:
        model: Changed in place.
        weights: Of the same names; positions may be of another grid.
        path: Of their file, for sentences.

    Raises:
        WeightsError: When a name or a shape differs.
    """
    state = model.state_dict()
    fitting = {
        name: fitted(name, weights[name], tuple(value.shape), first_convolution=False)
        for name, value in state.items()
        if name in weights
    }
    values = {name: one.value for name, one in fitting.items() if one is not None}
    if not values.keys() == state.keys() == weights.keys():
        raise WeightsError(
            f"The weights in {path} do not fit {type(model).__name__}, as another version of its library builds it; "
            "install the version it was exported with, or use load_into."
        )
    model.load_state_dict(values, strict=True)
    resampled = tuple(name for name, one in fitting.items() if one is not None and one.how == "resampled")
    report = MatchReport(tuple(fitting), resampled=resampled, source=path.name)
    if resampled:
        tell(report)
    return report
