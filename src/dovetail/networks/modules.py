"""Modules of the user: passed in Python, or imported by path."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from dovetail.errors import ModelError
from dovetail.importing import import_path


def module_of(model: Any) -> nn.Module | None:
    """Return the module that `model` is or names ("package.module:Class"), or None for None.

    Raises:
        DovetailError: It is neither, or the path does not lead to a module.
    """
    if model is None or isinstance(model, nn.Module):
        return model
    if not isinstance(model, str):
        raise ModelError(f"model expects a torch.nn.Module or package.module:Class, got {type(model).__name__}.")
    return imported_module(model)


def imported_module(path: str) -> nn.Module:
    """Return the module at "package.module:name", which names a module, or a class or function that returns one.

    Raises:
        DovetailError: The path leads to nothing, or to something else.
    """
    found = import_path(path, "model")
    if isinstance(found, nn.Module):
        return found
    made = found() if callable(found) else found
    if not isinstance(made, nn.Module):
        raise ModelError(
            f"{path} returned a {type(made).__name__}; specify a torch.nn.Module, or a class or function that returns "
            "one without arguments."
        )
    return made


def copied(model: nn.Module) -> nn.Module:
    """Return a deep copy of a module. Raise `ModelError` if it cannot be copied."""
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise ModelError(
            f"The {type(model).__name__} cannot be copied ({reason}), but training must not change your module; pass a "
            "module that copy.deepcopy supports."
        ) from error
