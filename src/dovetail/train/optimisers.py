"""Optimisers for a recipe's `OptimiserSpec`: parameter groups by rule, hyperparameters as pure functions of the step.

Nothing in this file waits for the device: norms and trust ratios stay tensors.
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
    """An optimiser whose step is a function of each group's parameters with gradients."""

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Perform one step for every group."""
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
        """Perform one step for the parameters of a group."""


class Lars(ByGroup):
    """Layer-wise adaptive rate scaling with heavy-ball momentum (You et al. 2017, arXiv 1708.03888), as in SlotCon.

    For a parameter p with gradient g: `g <- g + weight_decay p`; if the group adapts and neither norm is 0,
    `g <- g trust_coefficient |p| / (|g| + eps)`; then `v <- momentum v + g` and `p <- p - lr v`. The trust ratio
    scales the gradient before momentum, so a change of `lr` acts on the whole velocity.

    Args:
        params: Parameters or groups; "adapt" of a group (default True) enables the trust ratio.
        lr: Learning rate.
        momentum: Momentum of the velocity.
        weight_decay: Weight decay, added to the gradient.
        trust_coefficient: Factor of the trust ratio.
        eps: Constant added to the norm of the gradient; 0 in SlotCon, 1e-8 in PixPro.
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
        """Perform one step; overwrites gradients with the values that enter the velocity."""
        for p in params:
            if "velocity" not in self.state[p]:
                self.state[p]["velocity"] = torch.zeros_like(p)
        # Use the local part of sharded weights: except for the norms, all operations are elementwise.
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
    """torch's fused SGD on the local parts of sharded weights; torch has no fused SGD for sharded tensors."""

    def _step_group(self, group: dict[str, Any], params: list[Tensor]) -> None:
        """Perform one step, bit-identical to `torch.optim.SGD`."""
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
    """Return `coefficient |p| / (|g| + eps)` for each pair of norms, or 1 if either is 0, as scalars on the device."""
    usable = (p_norm > 0) & (g_norm > 0)
    ratio = coefficient * p_norm / torch.where(usable, g_norm + eps, torch.ones_like(g_norm))
    return list(torch.where(usable, ratio, torch.ones_like(ratio)).unbind())


@dataclass(frozen=True)
class GroupKey:
    """Settings that the parameters of a group share."""

    lr_scale: float
    constant_lr: bool
    decay: bool
    adapt: bool
    frozen_epochs: float


def matches(rule: ParameterRule, name: str, parameter: Tensor) -> bool:
    """Whether `rule` applies to the parameter `name`."""
    return re.search(rule.pattern, name) is not None and not (rule.one_dimensional and parameter.ndim != 1)


LrScale = Callable[[str], float]
"""Function from a parameter's name to the learning rate factor of its part of the model."""


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
    """Return the trainable parameters by their names for `ParameterRule`, without the leading "student."."""
    return {
        name.removeprefix("student."): parameter
        for name, parameter in learner.named_parameters()
        if parameter.requires_grad
    }


def parameter_groups(
    named: dict[str, nn.Parameter], spec: OptimiserSpec, lr_scale: LrScale | None = None
) -> list[dict[str, Any]]:
    """Return torch parameter groups in a stable order; each group has the fields of its `GroupKey`."""
    members: dict[tuple[GroupKey, bool], list[nn.Parameter]] = {}
    for name, parameter in named.items():
        # Sharding does not shard scalar weights, and a group must not mix both kinds.
        members.setdefault((group_key(name, parameter, spec, lr_scale), parameter.ndim == 0), []).append(parameter)
    return [{"params": params, **vars(key)} for (key, _), params in members.items()]


def build_optimiser(named: dict[str, nn.Parameter], spec: OptimiserSpec, lr_scale: LrScale | None = None) -> Optimizer:
    """Return the optimiser for `named` parameters. `set_hyperparameters` sets learning rate and weight decay.

    LARS is implemented in this file. SGD and AdamW are torch's fused versions. LAMB is timm's, without clipping.
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
    """Set the learning rate and weight decay of every group at `moment`, as a pure function of it.

    Args:
        optimiser: Optimiser whose groups have the fields of `GroupKey`.
        spec: Optimiser settings of the recipe.
        peak_lr: Peak learning rate.
        moment: Moment of the run.
        lr: Learning rate at `moment`; None uses the schedule of the recipe.
    """
    lr = spec.lr_schedule(peak_lr)(moment) if lr is None else lr
    weight_decay = value_at(spec.weight_decay, moment)
    for group in optimiser.param_groups:
        group["lr"] = (peak_lr if group["constant_lr"] else lr) * group["lr_scale"]
        if "weight_decay" in group:  # some external optimisers have none
            group["weight_decay"] = weight_decay if group["decay"] else 0.0


def drop_frozen_gradients(optimiser: Optimizer, moment: Moment) -> None:
    """Drop the gradients of frozen groups, so that their parameters do not change."""
    for group in optimiser.param_groups:
        if moment.step < round(group["frozen_epochs"] * moment.steps_per_epoch):
            for parameter in group["params"]:
                parameter.grad = None


@torch.no_grad()
def clip_gradients(optimiser: Optimizer, spec: OptimiserSpec) -> Tensor:
    """Clip gradients as in the recipe and return their total norm before clipping, as a scalar on the device."""
    grads = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    norms = norms_of(grads)
    norm: Tensor = torch.linalg.vector_norm(norms)
    if spec.clip_norm is not None:
        each = spec.clip_each_parameter
        factors = (spec.clip_norm / ((norms if each else norm) + CLIP_EPSILON)).clamp(max=1.0)
        torch._foreach_mul_([own_part(grad) for grad in grads], list(factors.unbind()) if each else factors)
    return norm
