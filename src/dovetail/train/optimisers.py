"""Optimisers from a recipe's `OptimiserSpec`: parameter groups by rule, hyperparameters as pure functions of the step.

Nothing here waits for the device: norms and trust ratios stay tensors.
"""

from __future__ import annotations

import re
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.sgd import sgd

from dovetail.errors import unknown_name
from dovetail.recipe import OptimiserSpec, ParameterRule
from dovetail.schedules import Moment, value_at
from dovetail.train.parts import norms_of, own_part

SGD_OPTIONS = ("lr", "momentum", "weight_decay", "dampening", "nesterov", "maximize", "fused")
CLIP_EPSILON = 1e-6  # as in `torch.nn.utils.clip_grad_norm_` and in DINO


class ByGroup(Optimizer):
    """An optimiser whose step is one function of each group's parameters that have a gradient."""

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Do one step of every group."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._step_group(group, params)
        return loss

    @abstractmethod
    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Do one step of the parameters of a group."""


class Lars(ByGroup):
    """Layer-wise adaptive rate scaling with heavy-ball momentum (You et al. 2017, arXiv 1708.03888), as SlotCon has it.

    For a parameter p with gradient g: `g <- g + weight_decay p`; where the group adapts and neither norm is 0,
    `g <- g trust_coefficient |p| / (|g| + eps)`; then `v <- momentum v + g` and `p <- p - lr v`. The trust ratio
    scales the gradient before momentum, so a change of `lr` acts on the whole velocity.

    Args:
        params: Parameters or groups; a group's "adapt" (default True) turns the trust ratio on.
        lr: Learning rate.
        momentum: Of the velocity.
        weight_decay: Added to the gradient.
        trust_coefficient: Factor of the trust ratio.
        eps: Added to the gradient's norm; 0 in SlotCon, 1e-8 in PixPro.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        eps: float = 0.0,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "adapt": True,
        }
        super().__init__(params, defaults)

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Do one step; gradients are overwritten with what enters the velocity."""
        for p in params:
            if "velocity" not in self.state[p]:
                self.state[p]["velocity"] = torch.zeros_like(p)
        # Of sharded weights the part that is here: all but the norms is the same for every number by itself.
        weights = [own_part(p) for p in params]
        grads = [own_part(p.grad) for p in params if p.grad is not None]
        velocities = [own_part(self.state[p]["velocity"]) for p in params]
        if group["weight_decay"] != 0:
            torch._foreach_add_(grads, weights, alpha=group["weight_decay"])
        if group["adapt"]:
            norms = norms_of(params), norms_of([p.grad for p in params if p.grad is not None])
            torch._foreach_mul_(grads, trust_ratios(*norms, group["trust_coefficient"], group["eps"]))
        torch._foreach_mul_(velocities, group["momentum"])
        torch._foreach_add_(velocities, grads)
        torch._foreach_add_(weights, velocities, alpha=-group["lr"])


class Sgd(ByGroup, SGD):
    """torch's fused SGD, which takes of cut weights this process's part: torch has no fused form for such tensors."""

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Do one step, to the bit as `torch.optim.SGD` does it."""
        for p in params:
            if self.state[p].get("momentum_buffer") is None:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        sgd(
            [own_part(p) for p in params],
            [own_part(p.grad) for p in params if p.grad is not None],
            [own_part(self.state[p]["momentum_buffer"]) for p in params],
            **{name: group[name] for name in SGD_OPTIONS},
        )


def trust_ratios(p_norm: Tensor, g_norm: Tensor, coefficient: float, eps: float) -> list[Tensor]:
    """Return `coefficient |p| / (|g| + eps)` for each pair of norms, 1 where either is 0: scalars on the device."""
    usable = (p_norm > 0) & (g_norm > 0)
    ratio = coefficient * p_norm / torch.where(usable, g_norm + eps, torch.ones_like(g_norm))
    return list(torch.where(usable, ratio, torch.ones_like(ratio)).unbind())


@dataclass(frozen=True)
class GroupKey:
    """What parameters of one group have in common."""

    lr_scale: float
    constant_lr: bool
    decay: bool
    adapt: bool
    frozen_epochs: float


def matches(rule: ParameterRule, name: str, parameter: Tensor) -> bool:
    """Whether `rule` is about the parameter `name`."""
    return re.search(rule.pattern, name) is not None and not (rule.one_dimensional and parameter.ndim != 1)


LrScale = Callable[[str], float]
"""From a parameter's name to the factor of its learning rate by the part of the model that it belongs to."""


def group_key(name: str, parameter: Tensor, spec: OptimiserSpec, lr_scale: LrScale | None = None) -> GroupKey:
    """Return the group of the parameter `name`: the first rule that matches, and the one-dimensional rule."""
    rule = next((one for one in spec.rules if matches(one, name, parameter)), ParameterRule(pattern=""))
    exempt = parameter.ndim == 1 and not spec.decay_one_dimensional
    return GroupKey(
        lr_scale=rule.lr_scale * (1.0 if lr_scale is None else lr_scale(name)),
        constant_lr=rule.constant_lr,
        decay=rule.weight_decay and not exempt,
        adapt=rule.adapt and not exempt,
        frozen_epochs=rule.frozen_epochs,
    )


def rule_names(learner: nn.Module) -> dict[str, nn.Parameter]:
    """Return the trainable parameters under the names that `ParameterRule` sees: without the leading "student."."""
    return {
        name.removeprefix("student."): parameter
        for name, parameter in learner.named_parameters()
        if parameter.requires_grad
    }


def parameter_groups(
    named: dict[str, nn.Parameter], spec: OptimiserSpec, lr_scale: LrScale | None = None
) -> list[dict[str, Any]]:
    """Return torch's parameter groups, in a stable order; every group carries the fields of its `GroupKey`."""
    members: dict[tuple[GroupKey, bool], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        # Weights without a dimension are the ones that sharding leaves whole, and no group may have both kinds.
        members.setdefault((group_key(name, parameter, spec, lr_scale), parameter.ndim == 0), []).append(parameter)
    return [{"params": params, **vars(key)} for (key, _), params in members.items()]


def build_optimiser(named: dict[str, nn.Parameter], spec: OptimiserSpec, lr_scale: LrScale | None = None) -> Optimizer:
    """Return the optimiser for `named` parameters; learning rate and decay are set by `set_hyperparameters`.

    LARS is this file's; SGD and AdamW are torch's fused forms; LAMB is timm's, without its own clipping.
    """
    groups = parameter_groups(named, spec, lr_scale)
    match spec.name:
        case "lars":
            return Lars(groups, lr=0.0, momentum=spec.momentum)
        case "sgd":
            return Sgd(groups, lr=0.0, momentum=spec.momentum, fused=True)
        case "adamw":
            return AdamW(groups, lr=0.0, fused=True)
        case "lamb":
            from timm.optim.lamb import Lamb

            for group in groups:
                group["always_adapt"] = group["adapt"]
            lamb: Optimizer = Lamb(groups, lr=0.0, max_grad_norm=None)
            return lamb
        case _:
            raise unknown_name("optimiser", spec.name, ("lars", "sgd", "adamw", "lamb"))


def set_hyperparameters(
    optimiser: Optimizer, spec: OptimiserSpec, peak_lr: float, moment: Moment, lr: float | None = None
) -> None:
    """Give every group its learning rate and weight decay at `moment`: a pure function, so nothing can drift.

    Args:
        optimiser: Whose groups have the fields of `GroupKey`.
        spec: The recipe's.
        peak_lr: Peak learning rate.
        moment: Where the run stands.
        lr: The learning rate at `moment`; None for that of the recipe's schedule.
    """
    lr = spec.lr_schedule(peak_lr)(moment) if lr is None else lr
    weight_decay = value_at(spec.weight_decay, moment)
    for group in optimiser.param_groups:
        group["lr"] = (peak_lr if group["constant_lr"] else lr) * group["lr_scale"]
        if "weight_decay" in group:  # some optimisers from outside have none
            group["weight_decay"] = weight_decay if group["decay"] else 0.0


def drop_frozen_gradients(optimiser: Optimizer, moment: Moment) -> None:
    """Drop the gradients of groups that are still frozen; such parameters stay as they are."""
    for group in optimiser.param_groups:
        if moment.step < round(group["frozen_epochs"] * moment.steps_per_epoch):
            for parameter in group["params"]:
                parameter.grad = None


@torch.no_grad()
def clip_gradients(optimiser: Optimizer, spec: OptimiserSpec) -> Tensor:
    """Clip as the recipe says and return the norm of all gradients before clipping: a scalar on the device."""
    grads = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    norms = norms_of(grads)
    norm: Tensor = torch.linalg.vector_norm(norms)
    if spec.clip_norm is not None:
        each = spec.clip_each_parameter
        factors = (spec.clip_norm / ((norms if each else norm) + CLIP_EPSILON)).clamp(max=1.0)
        torch._foreach_mul_([own_part(grad) for grad in grads], list(factors.unbind()) if each else factors)
    return norm
