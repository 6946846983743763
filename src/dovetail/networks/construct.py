"""Build a module from the constructor call in `model.json`, without running code of the file."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torchvision
from torch import nn

from dovetail.errors import DovetailError, ModelError
from dovetail.networks.known import ARCHITECTURES, TORCHVISION
from dovetail.networks.network import Construction
from dovetail.sizes import Size

OWN = ("dovetail.networks.decoders", "dovetail.networks.vit_fpn")
SHOWN = 200
MOST = {"depth": 256, "layer": 256, "block": 256, "dim": 8192, "channel": 8192, "chans": 8192, "width": 8192}
MOST_OTHERS = 1 << 16


def construct(call: str) -> nn.Module:
    """Build the module of a call such as "smp.Unet(encoder_name='resnet18', encoder_weights=None)".

    Raises:
        ModelError: If the call is not a model of a supported library, as for a custom module.
    """
    construction = Construction.parse(call)
    call = call if len(call) <= SHOWN else f"{call[:SHOWN]}…"  # a file may contain anything, and errors quote it
    function = None if construction is None else _function(construction.path)
    if construction is None or function is None:
        raise ModelError(
            f"{call} cannot be built from its name; pass your module as model, or load the weights with load_into."
        )
    refuse_sizes(construction, call)
    try:
        refuse_loading(construction, function)
        model = function(*construction.args, **construction.kwargs)
    except DovetailError:
        raise
    except Exception as error:  # libraries raise almost any exception for foreign arguments
        raise ModelError(
            f"{call} failed ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
            "; build your model yourself and load the weights with load_into."
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{call} returns a {type(model).__name__}, not a module; export the run again.")
    return model


def at_size(call: str, image_size: Size) -> str:
    """Return a constructor call with another image size for models with a grid of position embeddings.

    Other models support images of any size, and their call does not change.
    """
    construction = Construction.parse(call)
    if construction is None:
        return call
    sizes: dict[str, Size] = {name: image_size for name in ("img_size", "image_size") if name in construction.kwargs}
    return str(replace(construction, kwargs={**construction.kwargs, **sizes}))


def refuse_sizes(construction: Construction, call: str) -> None:
    """Raise `ModelError` for a number that is too large for any model, before memory is allocated."""
    for name, number in numbers_in("", [construction.kwargs, construction.args]):
        most = next((limit for word, limit in MOST.items() if word in name), MOST_OTHERS)
        if abs(number) > most:
            raise ModelError(
                f"{call} has {name or 'an argument'} {number:g}, more than {most:,}; build your model yourself and "
                "load the weights with load_into."
            )


def numbers_in(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yield the numbers in a plain value, each with the closest name above it."""
    if isinstance(value, Mapping):
        for inner, one in value.items():
            yield from numbers_in(str(inner), one)
    elif isinstance(value, list | tuple | set):
        for one in value:
            yield from numbers_in(name, one)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def refuse_loading(construction: Construction, function: Callable[..., Any] | None = None) -> None:
    """Raise `DovetailError` if a call would download or read weights, which a file must not do.

    Args:
        construction: The call.
        function: The called function; its signature names positional arguments and shows defaults that load weights.

    Raises:
        DovetailError: If the call would load weights.
        TypeError: If `function` has no such arguments.
    """
    asked = construction.asked_to_load()
    if function is not None and not asked:
        # torchvision's legacy positional arguments are not in its signature, so this raises an error for them.
        bound = inspect.signature(function).bind(*construction.args, **construction.kwargs)
        bound.apply_defaults()
        asked = Construction(construction.path, dict(bound.arguments)).asked_to_load()
    if asked:
        raise ModelError(
            f"{construction} would load other weights ({asked[0]}); build your model yourself and "
            "load the weights with load_into."
        )


def _function(path: str) -> Callable[..., Any] | None:
    module, _, name = path.rpartition(".")
    if path == "timm.create_model":
        return timm.create_model
    if module == "smp" and name in ARCHITECTURES.values():
        architecture: Callable[..., Any] = getattr(smp, name)
        return architecture
    if name in TORCHVISION and module == f"torchvision.models.{TORCHVISION[name]}":
        builder: Callable[..., Any] = torchvision.models.get_model_builder(name)
        return builder
    if module in OWN and not name.startswith("_"):
        found = getattr(importlib.import_module(module), name, None)
        return found if inspect.isfunction(found) and found.__module__ == module else None
    return None
