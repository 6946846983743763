"""Custom optimisers, schedules and arguments of Lightning's Trainer, passed in Python."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import nn
from torch.optim import Optimizer

from dovetail.errors import OptionsError, RunError, unknown_name
from dovetail.recipe import OptimiserSpec, Recipe
from dovetail.schedules import Moment
from dovetail.train.optimisers import LrScale, build_optimiser, parameter_groups

# Arguments of Lightning's Trainer that a run sets itself, with the corresponding option if there is one.
OWNED: Mapping[str, str] = {
    "accelerator": "accelerator",
    "devices": "devices",
    "num_nodes": "num_nodes",
    "strategy": "strategy",
    "precision": "precision",
    "plugins": "precision",
    "accumulate_grad_batches": "accumulate",
    "max_epochs": "epochs",
    "min_epochs": "epochs",
    "max_steps": "max_steps",
    "min_steps": "max_steps",
    "logger": "loggers",
    "callbacks": "callbacks",
    "log_every_n_steps": "log_every_steps",
    "enable_checkpointing": "save_every_minutes",
    "default_root_dir": "out",
    "gradient_clip_val": "recipe",
    "gradient_clip_algorithm": "recipe",
    "limit_val_batches": "knn_data",
    "num_sanity_val_steps": "knn_data",
    "use_distributed_sampler": "data",
    "reload_dataloaders_every_n_epochs": "data",
}

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Own:
    """A custom optimiser and schedule; None uses those of the recipe.

    Attributes:
        optimiser: Function from torch parameter groups to an optimiser.
        schedule: Function from a `Moment` to the learning rate as a fraction of its peak.
    """

    optimiser: Callable[[list[dict[str, Any]]], Optimizer] | None = None
    schedule: Callable[[Moment], float] | None = None

    def __post_init__(self) -> None:
        for name in ("optimiser", "schedule"):
            value = getattr(self, name)
            if value is not None and not callable(value):
                raise OptionsError(
                    f"{name} is {value!r}; pass a function, or use a recipe option to select one by name."
                )

    def build(self, named: dict[str, nn.Parameter], spec: OptimiserSpec, lr_scale: LrScale | None = None) -> Optimizer:
        """Return the optimiser for `named` parameters, in groups that follow the recipe's rules."""
        if self.optimiser is None:
            return build_optimiser(named, spec, lr_scale)
        return made(self.optimiser, parameter_groups(named, spec, lr_scale))

    def defaults(self) -> dict[str, float]:
        """Return the defaults of the custom optimiser: lr, and weight_decay if it has one."""
        if self.optimiser is None:
            return {}
        probe = made(self.optimiser, [{"params": [nn.Parameter(torch.zeros(2, 2))]}])
        return {name: float(probe.param_groups[0][name]) for name in ("lr", "weight_decay") if name in probe.defaults}

    def marks(self, optimiser: Optimizer) -> dict[str, Any]:
        """Return what a checkpoint records of the optimiser and the schedule, which a resumed run is given again."""
        return {"optimiser_class": type(optimiser).__name__, "own_schedule": self.schedule is not None}

    def check_marks(self, optimiser: Optimizer, state: Mapping[str, Any]) -> None:
        """Compare the optimiser and the schedule of a resumed run with those of its checkpoint.

        Raises:
            RunError: The optimiser is another one. Another kind of schedule is only warned of.
        """
        known = {**self.marks(optimiser), **state}  # older checkpoints have no marks
        if known["optimiser_class"] != type(optimiser).__name__:
            raise RunError(
                f"The run was trained with the optimiser {known['optimiser_class']}, but it is resumed with "
                f"{type(optimiser).__name__}; pass the same optimiser=... as before."
            )
        if known["own_schedule"] and self.schedule is None:
            log.warning(
                "The run had a schedule=... of your own, which is not passed now; the rest follows the recipe's."
            )

    def rate(self, spec: OptimiserSpec, peak: float, moment: Moment) -> float:
        """Return the learning rate at `moment`."""
        return spec.lr_schedule(peak)(moment) if self.schedule is None else peak * self.schedule(moment)

    def in_recipe(self, recipe: Recipe) -> Recipe:
        """Return the recipe with the weight decay of the custom optimiser."""
        if self.optimiser is None:
            return recipe
        decay = self.defaults().get("weight_decay", 0.0)
        return replace(recipe, optimiser=replace(recipe.optimiser, weight_decay=decay))


def made(make: Callable[[list[dict[str, Any]]], Optimizer], groups: list[dict[str, Any]]) -> Optimizer:
    """Return the optimiser of a user's function; raise `OptionsError` if it returns anything else."""
    optimiser = make(groups)
    if not isinstance(optimiser, Optimizer):
        raise OptionsError(
            f"optimiser returns a {type(optimiser).__name__}; pass a function that returns a torch.optim.Optimizer."
        )
    return optimiser


def trainer_arguments(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return further arguments of Lightning's Trainer.

    Raises:
        OptionsError: If the Trainer has no such argument, or the run sets it itself.
    """
    known = inspect.signature(Trainer.__init__).parameters
    for name in given or {}:
        if name in OWNED:
            raise OptionsError(f"trainer_args has {name}, which the run sets; use the option {OWNED[name]}.")
        if name not in known or name == "self":
            raise unknown_name("argument of Lightning's Trainer", name, [one for one in known if one != "self"])
    return dict(given or {})
