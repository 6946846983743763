"""From a constructor call, as `model.json` keeps it, back to a freshly built module; no code of the file is run."""

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
from dovetail.networks.network import Construction
from dovetail.networks.smp import ARCHITECTURES
from dovetail.networks.torchvision_models import MODELS

OWN = ("dovetail.networks.decoders", "dovetail.networks.vit_fpn")
SHOWN = 200
MOST = {"depth": 256, "layer": 256, "block": 256, "dim": 8192, "channel": 8192, "chans": 8192, "width": 8192}
MOST_OTHERS = 1 << 16


def construct(call: str) -> nn.Module:
    """Build the module that `call` spells, such as "smp.Unet(encoder_name='resnet18', encoder_weights=None)".

    Raises:
        ModelError: When it spells none of the known libraries' models, as for a module of the user's own.
    """
    construction = Construction.parse(call)
    call = call if len(call) <= SHOWN else f"{call[:SHOWN]}…"  # a file may say anything, and sentences quote it
    function = None if construction is None else _function(construction.path)
    if construction is None or function is None:
        raise ModelError(
            f"{call} cannot be built from its name; build your model yourself and load the weights with load_into."
        )
    refuse_sizes(construction, call)
    try:
        refuse_loading(construction, function)
        model = function(*construction.args, **construction.kwargs)
    except DovetailError:
        raise
    except Exception as error:  # libraries raise almost anything for arguments that another program wrote
        raise ModelError(
            f"{call} cannot be called here ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
            "; build your model yourself and load the weights with load_into."
        ) from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{call} gives a {type(model).__name__} and no module; export the run again.")
    return model


def at_size(call: str, image_size: int) -> str:
    """Return a constructor call with another side in pixels for what in the model depends on it: a grid of positions.

    Models without one take images of any size, and their call stays as it is.
    """
    construction = Construction.parse(call)
    if construction is None:
        return call
    sizes: dict[str, int] = {name: image_size for name in ("img_size", "image_size") if name in construction.kwargs}
    return str(replace(construction, kwargs={**construction.kwargs, **sizes}))


def refuse_sizes(construction: Construction, call: str) -> None:
    """Raise `ModelError` for a number that no model of these libraries has, before memory is taken for it."""
    for name, number in numbers_in("", [construction.kwargs, construction.args]):
        most = next((limit for word, limit in MOST.items() if word in name), MOST_OTHERS)
        if abs(number) > most:
            raise ModelError(
                f"{call} has {name or 'an argument'} {number:g}, more than {most:,}; build your model yourself and "
                "load the weights with load_into."
            )


def numbers_in(name: str, value: Any) -> Iterator[tuple[str, float]]:
    """Yield the numbers in a plain value, each with the nearest name above it."""
    if isinstance(value, Mapping):
        for inner, one in value.items():
            yield from numbers_in(str(inner), one)
    elif isinstance(value, list | tuple | set):
        for one in value:
            yield from numbers_in(name, one)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def refuse_loading(construction: Construction, function: Callable[..., Any] | None = None) -> None:
    """Raise `DovetailError` where the call would fetch or read weights of its own: a file's text may not ask for it.

    Args:
        construction: The call.
        function: What is called, to know positional arguments by name and to see defaults that load.

    Raises:
        DovetailError: It would.
        TypeError: `function` has no such arguments.
    """
    asked = construction.asked_to_load()
    if function is not None and not asked:
        # torchvision's old positional arguments have no place in its signature, and so are refused here.
        bound = inspect.signature(function).bind(*construction.args, **construction.kwargs)
        bound.apply_defaults()
        asked = Construction(construction.path, dict(bound.arguments)).asked_to_load()
    if asked:
        raise ModelError(
            f"{construction} would load more than the weights beside it ({asked[0]}); build your model yourself and "
            "load the weights with load_into."
        )


def _function(path: str) -> Callable[..., Any] | None:
    module, _, name = path.rpartition(".")
    if path == "timm.create_model":
        return timm.create_model
    if module == "smp" and name in ARCHITECTURES.values():
        architecture: Callable[..., Any] = getattr(smp, name)
        return architecture
    if name in MODELS and module == f"torchvision.models.{MODELS[name]}":
        builder: Callable[..., Any] = torchvision.models.get_model_builder(name)
        return builder
    if module in OWN and not name.startswith("_"):
        found = getattr(importlib.import_module(module), name, None)
        return found if inspect.isfunction(found) and found.__module__ == module else None
    return None
