"""Converts exported weights to the tensor names of other libraries."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from dovetail.errors import OptionsError, WeightsError, unknown_name
from dovetail.files.sidecar import SIDECAR
from dovetail.files.writing import write_weights, writing
from dovetail.networks.names import detectron2_decoder, is_resnet, mm_decoder
from dovetail.networks.network import Construction
from dovetail.networks.parts import Parts, local_name
from dovetail.weights.exported import Exported, part_of, read_exported, some
from dovetail.weights.outgoing import RULES, body_prefix, encoder_for, family_of

_NNUNET = re.compile(r"(.*\.)?encoder\.(stem|stages\.\d+\.\d+)\.(convs|blocks)\.")
COUNTER = "num_batches_tracked"  # frozen BatchNorm lacks it, and nothing reads it


@dataclass(frozen=True)
class Written:
    """The result of `export_weights`: the file, the number of tensors, and a description of them."""

    path: Path
    tensors: int
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.tensors} tensors, {self.what}"


FORMATS: tuple[str, ...] = ("model", "encoder", "decoder", "timm", "torchvision", "smp")
FORMATS += ("detectron2", "mmseg", "ultralytics", "nnunet")  # programs that name tensors differently
_BELOW = {"detectron2": "model", "nnunet": "network_weights"}  # the key that a program expects the weights under


def export_weights(source: str | Path | Exported, *, format: str, to: str | Path) -> Written:
    """Write exported weights for another program.

    Args:
        source: Run folder, exported folder or its `model.safetensors`, or an `Exported` object.
        format: One of "model" (all tensors, names unchanged), "encoder" or "decoder" (local names), "timm" or
            "torchvision" (the encoder with the names of that library's classifier, for ResNets and for models of that
            library), "smp" (a model of that library), "detectron2" or "mmseg" (trained tensors of a ResNet, ConvNeXt,
            Swin or ViT, and of an FPN or FCN decoder), "ultralytics" (a ResNet, as in its TorchVision backbone),
            "nnunet" (a network of nnU-Net, pre-trained as a custom module).
        to: Output file: .safetensors, or .pt or .pth for `torch.load`.

    Raises:
        DovetailError: The format or suffix is unsupported, the model does not fit the format, or the file cannot be
            written.
    """
    if format not in FORMATS:
        raise unknown_name("format", format, FORMATS)
    path = Path(to)
    if path.suffix not in (".safetensors", ".pt", ".pth"):
        raise OptionsError(f"--to {path} has an unsupported suffix; expected .safetensors, .pt or .pth.")
    exported = source if isinstance(source, Exported) else read_exported(source)
    if exported.parts is None:
        raise WeightsError(f"Found no {SIDECAR} in the folder of {exported.path}; specify an exported folder.")
    weights, what = _in_format(exported, exported.parts, format)
    if not weights:
        raise OptionsError(f"The model in {exported.path} has no {format}; specify another format.")
    with writing(path, option="to"):
        write_weights(weights, path, below=_BELOW.get(format))
    return Written(path, len(weights), what)


def _in_format(exported: Exported, parts: Parts, format: str) -> tuple[dict[str, Tensor], str]:
    """Return the tensors by their names in the format, and a description of them."""
    library = str(exported.info["constructor"]).partition(".")[0]
    whole = f"the whole of {exported.info['constructor']}"
    if format == "model":
        return exported.weights, whole
    if format == library and format in ("smp", "torchvision"):
        # An untrained head has the wrong number of classes for the user of the file.
        fresh = [name for name in exported.info.get("untrained", ()) if parts.split(name)[0] == "head"]
        weights = {name: value for name, value in exported.weights.items() if name not in fresh}
        return weights, f"{whole} without its untrained head ({some(fresh)})" if fresh else whole
    if format == "smp":
        raise OptionsError(f"{exported.info['constructor']} is not a model of smp; specify another format.")
    if format == "decoder":
        return part_of(exported.weights, parts, format), "the decoder"
    encoder = part_of(exported.weights, parts, "encoder")
    if format == "encoder":
        return encoder, "the encoder"
    if format == "nnunet":
        return _for_nnunet(exported), "the network without its segmentation layers, for nnU-Net"
    if format == "timm" and _is_timms(exported):
        plain = {local_name(name): value for name, value in encoder.items()}
        return plain, "the encoder as timm's model without classifier"
    if format in ("timm", "torchvision"):
        if not is_resnet(list(encoder)):
            raise OptionsError(
                f"The format {format} supports ResNets and models of {format}, but not the encoder of "
                f"{exported.info['constructor']}; use the format 'encoder'."
            )
        return encoder, f"the encoder as {format}'s ResNet without classifier"
    return _for_other_framework(exported, parts, format), f"the trained encoder and decoder for {format}"


def _is_timms(exported: Exported) -> bool:
    """Return whether the encoder is a timm model: alone, in a composed model, or as a "tu-" encoder of smp."""
    call = str(exported.info["constructor"])
    construction = Construction.parse(call)
    return call.startswith(("timm.", "dovetail.networks.")) or (
        construction is not None
        and call.startswith("smp.")
        and str((*construction.args, construction.kwargs.get("encoder_name"))[0]).startswith("tu-")
    )


def _for_nnunet(exported: Exported) -> dict[str, Tensor]:
    """Return the tensors of an nnU-Net network without its segmentation layers. nnU-Net matches them by name."""
    if not any(_NNUNET.match(name) for name in exported.weights):
        raise OptionsError(
            f"The model in {exported.path} is not an nnU-Net network (expected names such as "
            "encoder.stages.0.0.convs.0.conv.weight); pre-train an nnU-Net network as a custom module."
        )
    return {name: value for name, value in exported.weights.items() if ".seg_layers." not in name}


def _for_other_framework(exported: Exported, parts: Parts, format: str) -> dict[str, Tensor]:
    never = set(exported.info["untrained"])
    trained = {name: value for name, value in exported.weights.items() if name not in never}
    encoder, decoder = part_of(trained, parts, "encoder"), part_of(trained, parts, "decoder")
    # The file has the blocks of all levels, trained or not. Their number determines the finest level.
    blocks = {name.split(".")[1] for name in part_of(exported.weights, parts, "decoder") if name.startswith("inner_")}
    named = encoder_for(format, encoder)
    if named is None:
        raise OptionsError(
            f"The format {format} does not support the encoder of {exported.info['constructor']}; use the format "
            "'encoder', or one of the supported encoders: "
            f"{', '.join(family for known, family in (*RULES, ('detectron2', 'ResNet')) if known == format)}."
        )
    body = body_prefix(format, family_of(list(encoder)), pyramid=bool(blocks))
    found = {body + name: value for name, value in named.items()}
    if format == "mmseg":
        return found | {mm_decoder(name): value for name, value in decoder.items()}
    if format == "detectron2":
        found |= {
            f"backbone.{detectron2_decoder(name, finest_level=6 - len(blocks))}": value
            for name, value in decoder.items()
        }
    return {name: value for name, value in found.items() if not name.endswith(COUNTER)}
