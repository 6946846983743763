"""Weights out of a run and into a model: exported folders, match reports, loading with nothing left unsaid.

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
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dovetail.errors import OptionsError, WeightsError, counted, unknown_name
from dovetail.files.durable import write_whole
from dovetail.files.finite import check_finite
from dovetail.files.sidecar import SIDECAR, read_sidecar
from dovetail.files.tensors import write_tensors
from dovetail.files.writing import write_weights, writing
from dovetail.networks.construct import construct
from dovetail.networks.names import detectron2_decoder, detectron2_encoder, is_resnet, mm_decoder
from dovetail.networks.network import Network
from dovetail.networks.parts import Parts, local_name, locate_parts, untrained_names

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
    """What loading did, by names of the target's tensors (`unexpected`: by names in the file).

    Attributes:
        matched: Loaded.
        missing: In the target, but not in the file.
        unexpected: Trained and in the file, but not in the target.
        mismatched: In both, of different shapes.
        fresh: Never trained by pre-training (task heads, unused branches): left as they are in the target.
    """

    matched: tuple[str, ...]
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[Mismatch, ...] = ()
    fresh: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{counted(len(self.matched), 'tensor')} loaded"]
        for what, names in (
            ("left fresh", self.fresh),
            ("missing in the file", self.missing),
            ("unexpected in the file", self.unexpected),
            ("of another shape", tuple(one.name for one in self.mismatched)),
        ):
            if names:
                lines.append(f"{len(names)} {what}: {_some(names)}")
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
    """Read a run folder, an exported folder, or a .safetensors file with or without `model.json` beside it.

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
    if not path.is_file():
        raise WeightsError(f"There is no file or folder {path}; give a run, an exported folder or a .safetensors file.")
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path} is not a .safetensors file ({error}); export the weights again.") from error
    check_finite(weights, str(path), "export the weights of another run")
    info = read_sidecar(path.parent / SIDECAR)
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


def load_into(
    model: nn.Module, source: str | Path | Exported, *, part: SelectedPart = "all", strict: bool = True
) -> MatchReport:
    """Load exported weights into `model` in place and report what fitted.

    Names are matched within the encoder and within the decoder, so the target may be of another library than the
    source, as long as the parts are of one architecture. Task heads are left as they are.

    Args:
        model: The module to fine-tune.
        source: Run folder, exported folder or .safetensors file; or one of them, read.
        part: Load everything, or only one part.
        strict: Raise when anything is missing, unexpected or of another shape, before the model is touched.

    Raises:
        WeightsError: As `strict` says, and always when nothing fits.
    """
    exported = source if isinstance(source, Exported) else read_exported(source)
    report, pairs = match(model, exported, part=part)
    if not report.matched:
        raise WeightsError(
            f"None of the tensors in {exported.path} fits {type(model).__name__} "
            f"({_faults(report) or 'no common name'}); build the model that was pre-trained."
        )
    if strict and (report.missing or report.unexpected or report.mismatched):
        raise WeightsError(
            f"{exported.path} does not fit {type(model).__name__}: {_faults(report)}; build the model that was "
            "pre-trained, or load with strict=False."
        )
    state = model.state_dict()
    with torch.no_grad():
        for target, origin in pairs.items():
            state[target].copy_(exported.weights[origin])
    return report


def match(model: nn.Module, exported: Exported, *, part: SelectedPart) -> tuple[MatchReport, dict[str, str]]:
    """Return the report, and {name in the model: name in the file} of what fits; changes nothing."""
    state = model.state_dict()
    source_parts, target_parts = _both_parts(model, exported, list(state))
    if part != "all" and target_parts is None:
        raise OptionsError(
            f"It is not known which part of {type(model).__name__} is the {part}; load part='all', or load into that "
            "part itself."
        )
    origins = {_key(name, source_parts): name for name in exported.weights}
    never = {_key(name, source_parts) for name in exported.info.get("untrained", ())}
    found: dict[str, list[Any]] = {"matched": [], "missing": [], "mismatched": [], "fresh": []}
    pairs: dict[str, str] = {}
    fine_tuned = "task" in exported.info
    for name, value in state.items():
        key = _key(name, target_parts)
        if part != "all" and key[0] != part:
            continue
        origin = origins.get(key)
        # Of a head, what the file trained fits or is another task's; a bare file does not say what was trained.
        fits = bool(exported.info) and origin is not None
        if fine_tuned and origin is not None:
            fits = exported.weights[origin].shape == value.shape
        if (key[0] == "head" and not fits) or key in never or (origin is None and name.endswith(COUNTER)):
            found["fresh"].append(name)
        elif origin is None:
            found["missing"].append(name)
        elif exported.weights[origin].shape != value.shape:
            found["mismatched"].append(Mismatch(name, tuple(exported.weights[origin].shape), tuple(value.shape)))
        else:
            found["matched"].append(name)
            pairs[name] = origin
    taken = {_key(name, target_parts) for name in state}
    unexpected = [
        name
        for key, name in origins.items()
        if key not in taken
        and key not in never
        and not (fine_tuned and key[0] == "head")
        and (part == "all" or key[0] == part)
        and not name.endswith(COUNTER)
    ]
    return MatchReport(unexpected=tuple(unexpected), **{what: tuple(names) for what, names in found.items()}), pairs


COUNTER = "num_batches_tracked"  # frozen BatchNorm has none, and nothing reads it


def _both_parts(model: nn.Module, exported: Exported, names: list[str]) -> tuple[Parts | None, Parts | None]:
    """Return where the parts are in the file and in the model; one that is not known is taken to be like the other."""
    source, target = exported.parts, locate_parts(model)
    if source is None and target is not None:
        # A bare file holds either the very model, or an encoder by itself.
        return (target if set(names) & set(exported.weights) else Parts("")), target
    return source, target or source


def _key(name: str, parts: Parts | None) -> tuple[str, str]:
    """Return what names of one tensor in two models have in common."""
    if parts is None:
        return "all", name
    where, local = parts.split(name)
    return where, local_name(local)


def _some(names: Sequence[str], count: int = 4) -> str:
    return ", ".join(names[:count]) + (", …" if len(names) > count else "")


def _faults(report: MatchReport) -> str:
    """Return what does not fit as one clause."""
    shapes = [f"{one.name} ({list(one.found)}, not {list(one.wanted)})" for one in report.mismatched]
    faults = (("missing", report.missing), ("unexpected", report.unexpected), ("of another shape", shapes))
    return "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in faults if names)


def load(source: str | Path) -> nn.Module:
    """Build the exported model from its constructor call and load its weights strictly.

    Raises:
        WeightsError: For a bare file, or a module of the user's own (use `load_into`).
    """
    exported = read_exported(source)
    if not exported.info or exported.path.name != MODEL_FILE:
        raise WeightsError(f"{exported.path} does not say how its model is built; build it and use load_into.")
    model = construct(exported.info["constructor"])
    try:
        model.load_state_dict(exported.weights, strict=True)
    except RuntimeError as error:
        raise WeightsError(
            f"The weights in {exported.path} do not fit {exported.info['constructor']}, as another version of its "
            "library builds it; install the version it was exported with, or use load_into."
        ) from error
    return model


@dataclass(frozen=True)
class Written:
    """What `export_weights` wrote."""

    path: Path
    tensors: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.tensors} tensors, {self.what}"


FORMATS = ("model", "encoder", "decoder", "timm", "torchvision", "smp", "detectron2", "mmseg")


def export_weights(source: str | Path | Exported, *, format: str, to: str | Path) -> Written:
    """Write exported weights for another program.

    Args:
        source: Run folder, exported folder or its `model.safetensors`; or one of them, read.
        format: "model" (all, names unchanged), "encoder" or "decoder" (local names), "timm" or "torchvision" (the
            encoder as that library's classifier names it, for ResNets and for models of that library), "smp" (a model
            of that library), "detectron2" or "mmseg" (trained tensors of a ResNet and of an FPN or FCN decoder).
        to: The file: .safetensors, or .pt or .pth for `torch.load`.

    Raises:
        DovetailError: For an unknown format or ending, when the model cannot be put so, or the file not be written.
    """
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    path = Path(to)
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise OptionsError(f"{path} must end in .safetensors, .pt or .pth; rename it.")
    exported = source if isinstance(source, Exported) else read_exported(source)
    if exported.parts is None:
        raise WeightsError(f"{exported.path} has no {SIDECAR} beside it; give the exported folder.")
    weights, what = _in_format(exported, exported.parts, format)
    if not weights:
        raise OptionsError(f"The model in {exported.path} has no {format}; choose another format.")
    with writing(path, option="to"):
        write_weights(weights, path, below="model" if format == "detectron2" else None)
    return Written(path, len(weights), what)


def _in_format(exported: Exported, parts: Parts, format: str) -> tuple[dict[str, Tensor], str]:
    """Return the tensors under the format's names, and what they are in words."""
    library = str(exported.info["constructor"]).partition(".")[0]
    whole = f"the whole of {exported.info['constructor']}"
    if format == "model":
        return exported.weights, whole
    if format == library and format in ("smp", "torchvision"):
        # A head that nothing trained has the wrong number of classes for whoever loads the file.
        fresh = [name for name in exported.info.get("untrained", ()) if parts.split(name)[0] == "head"]
        weights = {name: value for name, value in exported.weights.items() if name not in fresh}
        return weights, f"{whole} without its untrained head ({_some(fresh)})" if fresh else whole
    if format == "smp":
        raise OptionsError(f"{exported.info['constructor']} is no model of smp; choose another format.")
    if format == "decoder":
        return part_of(exported.weights, parts, format), "the decoder"
    encoder = part_of(exported.weights, parts, "encoder")
    if format == "encoder":
        return encoder, "the encoder"
    if format == "timm" and library == "timm":
        return encoder, "the timm model without classifier"
    if not is_resnet(list(encoder)):
        raise OptionsError(f"The encoder is not a ResNet, so {format} has no names for it; choose 'encoder'.")
    if format in ("timm", "torchvision"):
        return encoder, f"the encoder as {format}'s ResNet without classifier"
    return _for_other_framework(exported, parts, format), f"the trained encoder and decoder for {format}"


def _for_other_framework(exported: Exported, parts: Parts, format: str) -> dict[str, Tensor]:
    never = set(exported.info["untrained"])
    trained = {name: value for name, value in exported.weights.items() if name not in never}
    encoder, decoder = part_of(trained, parts, "encoder"), part_of(trained, parts, "decoder")
    # The blocks of all levels are in the file, trained or not; their number tells the finest level.
    blocks = {name.split(".")[1] for name in part_of(exported.weights, parts, "decoder") if name.startswith("inner_")}
    if format == "mmseg":
        named = {f"backbone.{name}": value for name, value in encoder.items()}
        return named | {mm_decoder(name): value for name, value in decoder.items()}
    body = "backbone.bottom_up." if blocks else "backbone."
    named = {body + detectron2_encoder(name): value for name, value in encoder.items()}
    named |= {
        "backbone." + detectron2_decoder(name, finest_level=6 - len(blocks)): value for name, value in decoder.items()
    }
    return {name: value for name, value in named.items() if not name.endswith(COUNTER)}
