"""From a constructor call, as `model.json` keeps it, back to a freshly built module; no code of the file is run."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

import segmentation_models_pytorch as smp
import timm
import torchvision
from torch import nn

from dovetail.errors import DovetailError
from dovetail.networks.network import Construction
from dovetail.networks.smp import ARCHITECTURES
from dovetail.networks.torchvision_models import MODELS


def construct(call: str) -> nn.Module:
    """Build the module that `call` spells, such as "smp.Unet(encoder_name='resnet18', encoder_weights=None)".

    Raises:
        DovetailError: When it spells none of the known libraries' models, as for a module of the user's own.
    """
    construction = Construction.parse(call)
    function = None if construction is None else _function(construction.path)
    if construction is None or function is None:
        raise DovetailError(
            f"{call} cannot be built from its name; build your model yourself and load the weights with load_into."
        )
    model = function(*construction.args, **construction.kwargs)
    if not isinstance(model, nn.Module):
        raise DovetailError(f"{call} gives a {type(model).__name__} and no module; export the run again.")
    return model


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
    if module.startswith("dovetail.networks.") and not name.startswith("_"):
        found = getattr(importlib.import_module(module), name, None)
        return found if inspect.isfunction(found) or inspect.isclass(found) else None
    return None
