"""Names of the models that can be built, read from the source files of the libraries.

Importing the libraries takes seconds, so the command line looks up a model here first. Names that do not occur in the
files at all are refused; other names are left to `dovetail.networks.build`.
"""

from __future__ import annotations

import difflib
import fnmatch
import functools
import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from dovetail.errors import ModelError

ARCHITECTURES: Mapping[str, str] = {
    name.lower(): name
    for name in (
        "Unet",
        "UnetPlusPlus",
        "MAnet",
        "Linknet",
        "FPN",
        "PSPNet",
        "PAN",
        "DeepLabV3",
        "DeepLabV3Plus",
        "UPerNet",
        "Segformer",
        "DPT",
    )
}
"""Class names of segmentation_models_pytorch by their lower-case names."""

TORCHVISION: Mapping[str, str] = {
    "fcn_resnet50": "segmentation",
    "fcn_resnet101": "segmentation",
    "deeplabv3_resnet50": "segmentation",
    "deeplabv3_resnet101": "segmentation",
    "deeplabv3_mobilenet_v3_large": "segmentation",
    "fasterrcnn_resnet50_fpn": "detection",
    "fasterrcnn_resnet50_fpn_v2": "detection",
    "maskrcnn_resnet50_fpn": "detection",
    "maskrcnn_resnet50_fpn_v2": "detection",
    "lraspp_mobilenet_v3_large": "segmentation",
    "fasterrcnn_mobilenet_v3_large_fpn": "detection",
    "fasterrcnn_mobilenet_v3_large_320_fpn": "detection",
    "fcos_resnet50_fpn": "detection",
    "keypointrcnn_resnet50_fpn": "detection",
    "ssd300_vgg16": "detection",
    "ssdlite320_mobilenet_v3_large": "detection",
    "retinanet_resnet50_fpn": "detection",
    "retinanet_resnet50_fpn_v2": "detection",
}
"""Models of torchvision and their modules."""

DECODERS = ("fpn", "fpn-bias", "fcn", "fcn-d1")
"""Decoders of "timm/NAME+DECODER"; `dovetail.networks.build` has their modules."""

LEAST = 3  # letters of a name that others are taken to continue


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the most similar name: the shortest one that continues `name`, or the one with the fewest changes.

    >>> closest("tf_efficientnet_lite", ["tf_efficientnet_lite4", "tf_efficientnet_lite0"])
    'tf_efficientnet_lite0'
    """
    choices, wanted = sorted(known), name.lower()
    longer = [one for one in choices if one.lower().startswith(wanted)] if len(wanted) >= LEAST else []
    if longer:
        return min(longer, key=lambda one: (len(one), one))
    return next(iter(difflib.get_close_matches(wanted, choices, n=1, cutoff=0.6)), None)


def unknown_model(name: str, suggested: str | None) -> ModelError:
    """Return the error for a model that does not exist."""
    if suggested is not None:
        return ModelError(f"There is no model {name!r}; did you mean {suggested!r}?")
    library = name.partition("/")[0]
    known = library if library in ("timm", "smp", "torchvision") else "timm"
    return ModelError(f"There is no model {name!r}; list the names with `dovetail models --library {known} --all`.")


def timm_like(name: str) -> str | None:
    """Return the most similar name of a timm model. A prefix "tu-", which only smp's names have, is dropped."""
    return closest(name.removeprefix("tu-"), timm_names())


def smp_like(architecture: str, encoder: str) -> str | None:
    """Return the most similar encoder for an architecture of segmentation_models_pytorch.

    timm's models have the prefix "tu-" there. It is kept if it was given, and added if only timm has the model.
    """
    plain = encoder.removeprefix("tu-")
    if architecture != "dpt" and not encoder.startswith("tu-"):
        own = [name for name in smp_encoders() if not name.startswith("timm-")]
        if plain.lower() not in timm_names() and (found := closest(plain, own)) is not None:
            return found
    vits = architecture == "dpt"  # the other architectures need maps at several strides
    found = closest(plain, [name for name in timm_names() if name.startswith("vit_") is vits])
    return f"tu-{found}" if found is not None else None


def library_of(name: str) -> str | None:
    """Return the complete name of a model without its library, such as "timm/resnet50" for "resnet50"."""
    encoder, plus, decoder = name.partition("+")
    if encoder.partition(".")[0] in timm_names():
        return f"timm/{encoder}{plus}{decoder}"
    if name in TORCHVISION:
        return f"torchvision/{name}"
    return f"smp/{name}" if "/" in name and name.partition("/")[0].lower() in ARCHITECTURES else None


def without_library(name: str) -> ModelError:
    """Return the error for a name that does not begin with a library."""
    full = library_of(name)
    if full is not None:
        return unknown_model(name, full)
    return ModelError(
        f"Unknown model {name!r}; use 'timm/<name>', 'timm/<name>+fpn', 'smp/<architecture>/<encoder>' or "
        "'torchvision/<name>'."
    )


def unknown_architecture(architecture: str, encoder: str) -> ModelError:
    """Return the error for an architecture that segmentation_models_pytorch does not have."""
    close = closest(architecture, ARCHITECTURES)
    return unknown_model(f"smp/{architecture}/{encoder}", close and f"smp/{close}/{encoder}")


def unknown_encoder(architecture: str, encoder: str) -> ModelError:
    """Return the error for an encoder that segmentation_models_pytorch does not have."""
    close = smp_like(architecture.lower(), encoder)
    return unknown_model(f"smp/{architecture}/{encoder}", close and f"smp/{architecture}/{close}")


def unknown_timm(name: str, decoder: str) -> ModelError:
    """Return the error for a model that timm does not have. `decoder` is empty, or begins with "+"."""
    close = timm_like(name)
    return unknown_model(f"timm/{name}{decoder}", close and f"timm/{close}{decoder}")


def unknown_torchvision(name: str) -> ModelError:
    """Return the error for a model that torchvision does not have."""
    close = closest(name, TORCHVISION)
    return unknown_model(f"torchvision/{name}", close and f"torchvision/{close}")


def refuse_unknown(model: str) -> None:
    """Raise `ModelError` if a name is certainly not that of a model, without importing the libraries.

    Calls such as "timm.create_model('NAME')" and paths such as "package.module:Class" are not checked.
    """
    if re.search(r"[(:]", model):
        return
    library, slash, rest = model.partition("/")
    if library == "timm":
        encoder, plus, decoder = rest.partition("+")
        if not in_timm(encoder):
            raise unknown_timm(encoder, plus + decoder)
    elif library == "torchvision":
        if rest not in TORCHVISION:
            raise unknown_torchvision(rest)
    elif library == "smp":
        architecture, slash, encoder = rest.partition("/")
        if slash and architecture.lower() not in ARCHITECTURES:
            raise unknown_architecture(architecture, encoder)
        own = encoder in smp_encoders() or occurs(encoder, "segmentation_models_pytorch")
        if slash and not own and not in_timm(encoder.removeprefix("tu-")):
            raise unknown_encoder(architecture, encoder)
    elif slash or not model.startswith("smp."):
        raise without_library(model)


def in_timm(name: str) -> bool:
    """Return whether timm may have a model of this name, with or without the tag of its weights."""
    plain = name.partition(".")[0]
    return not source_of("timm") or plain in timm_names() or plain in timm_former_names()


def occurs(name: str, library: str) -> bool:
    """Return whether a name occurs as a word in the source files of a library."""
    source = source_of(library)
    found = re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", source)
    return not source or (bool(name) and found is not None)  # without its source files, nothing is known


@functools.cache
def timm_names() -> frozenset[str]:
    """Return the names of timm's models, as `timm.list_models()`."""
    return frozenset(re.findall(r"@register_model\s+def (\w+)\(", source_of("timm")))


@functools.cache
def timm_former_names() -> frozenset[str]:
    """Return the deprecated names that timm still accepts, such as "tv_resnet34"."""
    tables = re.findall(r"register_model_deprecations\(__name__, \{(.*?)\}\)", source_of("timm"), re.DOTALL)
    return frozenset(name for table in tables for name in re.findall(r"[\"']([\w.-]+)[\"']\s*:", table))


@functools.cache
def smp_encoders() -> frozenset[str]:
    """Return the names of the encoders of segmentation_models_pytorch, without those of timm."""
    return frozenset(re.findall(r'^    "([\w.-]+)": \{', source_of("segmentation_models_pytorch"), re.MULTILINE))


def list_models(pattern: str = "*") -> list[str]:
    """Return the names that match a shell pattern, or contain `pattern` if it has no wildcard."""
    in_order = sorted(timm_names(), key=natural)
    names = [f"timm/{name}" for name in in_order]
    names += [f"timm/{name}+{decoder}" for name in ("resnet50", "convnext_tiny") for decoder in DECODERS]
    encoders = [name for name in sorted(smp_encoders(), key=natural) if not name.startswith("timm-")]
    names += [f"timm/vit_small_patch16_224+{decoder}" for decoder in ("fpn", "fpn-bias")]
    names += [f"smp/{key}/{encoder}" for key in ARCHITECTURES if key != "dpt" for encoder in encoders]
    names += [f"smp/dpt/tu-{name}" for name in in_order if name.startswith("vit_")]
    names += [f"torchvision/{name}" for name in TORCHVISION]
    wanted = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"
    return [name for name in names if fnmatch.fnmatch(name, wanted)]


def natural(name: str) -> list[str | int]:
    """Return a key that sorts numbers in names by their value."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name.lower())]


FOLDERS = {"timm": "models", "segmentation_models_pytorch": "encoders"}


@functools.cache
def source_of(library: str) -> str:
    """Return the source files in which a library defines its models, as one text. The library is not imported."""
    spec = importlib.util.find_spec(library)
    if spec is None or spec.origin is None:
        raise ModelError(f"The package {library} is missing; install it.")
    folder = Path(spec.origin).parent / FOLDERS[library]
    return "\n".join(path.read_text(encoding="utf-8") for path in sorted(folder.rglob("*.py")))
