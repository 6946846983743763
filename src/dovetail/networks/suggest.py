"""Suggests the name of a model for one that does not exist. Suggestions can be passed to `--model` as they are."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

import segmentation_models_pytorch as smp
import timm

from dovetail.errors import ModelError

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
    return closest(name.removeprefix("tu-"), timm.list_models())


def smp_like(architecture: str, encoder: str) -> str | None:
    """Return the most similar encoder for an architecture of segmentation_models_pytorch.

    timm's models have the prefix "tu-" there. It is kept if it was given, and added if only timm has the model.
    """
    plain = encoder.removeprefix("tu-")
    if architecture != "dpt" and not encoder.startswith("tu-"):
        own = [name for name in smp.encoders.get_encoder_names() if not name.startswith("timm-")]
        if plain.lower() not in timm.list_models() and (found := closest(plain, own)) is not None:
            return found
    vits = architecture == "dpt"  # the other architectures need maps at several strides
    found = closest(plain, [name for name in timm.list_models() if name.startswith("vit_") is vits])
    return f"tu-{found}" if found is not None else None


def library_of(name: str, architectures: Iterable[str], torchvision_models: Iterable[str]) -> str | None:
    """Return the complete name of a model without its library, such as "timm/resnet50" for "resnet50"."""
    encoder, plus, decoder = name.partition("+")
    if timm.is_model(encoder):
        return f"timm/{encoder}{plus}{decoder}"
    if name in torchvision_models:
        return f"torchvision/{name}"
    return f"smp/{name}" if "/" in name and name.partition("/")[0].lower() in architectures else None
