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

OWN = ("dovetail.networks.decoders", "dovetail.networks.vit_fpn")
# Arguments by which the libraries load weights, from a file or over the network.
LOADS = (
    *("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "pretrained_strict", "checkpoint_path", "cache_dir"),
    *("weights", "weights_backbone", "encoder_weights"),
)


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
    refuse_loading(construction)
    try:
        model = function(*construction.args, **construction.kwargs)
    except DovetailError:
        raise
    except Exception as error:  # libraries raise almost anything for arguments that another program wrote
        raise DovetailError(
            f"{call} cannot be called here ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})"
            "; build your model yourself and load the weights with load_into."
        ) from error
    if not isinstance(model, nn.Module):
        raise DovetailError(f"{call} gives a {type(model).__name__} and no module; export the run again.")
    return model


def refuse_loading(construction: Construction) -> None:
    """Raise `DovetailError` where the call would fetch or read weights of its own: a file's text may not ask for it."""
    names = [str(value) for value in (*construction.args, *construction.kwargs.values()) if isinstance(value, str)]
    asked = [name for name in LOADS if construction.kwargs.get(name) not in (None, False)]
    asked += [name for name in names if ":" in name or "/" in name or "\\" in name]
    if asked:
        raise DovetailError(
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
