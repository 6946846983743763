"""Optimisers: LARS against a loop, rules, schedules, clipping."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dovetail.recipe import OptimiserSpec, ParameterRule
from dovetail.schedules import Cosine, Moment
from dovetail.train.optimisers import (
    Lars,
    Sgd,
    build_optimiser,
    clip_gradients,
    drop_frozen_gradients,
    group_key,
    rule_names,
    set_hyperparameters,
)

HALF = Moment(step=50, total_steps=100, steps_per_epoch=10)


class Model(nn.Module):
    """Parameters of one and more dimensions, under the names of a learner."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))
        self.objectives = nn.ModuleDict({"encoder": nn.Linear(5, 5)})
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)

    def loss(self, seed: int) -> Tensor:
        torch.manual_seed(seed)
        out: Tensor = self.objectives["encoder"](self.student(torch.randn(6, 3, 4, 4)))
        return out.square().mean()


def slow_lars_step(
    params: list[Tensor], velocities: list[Tensor], *, lr: float, momentum: float, decay: float, trust: float
) -> None:
    """One tensor after the other, one number at a time where it matters."""
    for p, v in zip(params, velocities, strict=True):
        g = p.grad.clone()
        if p.ndim != 1:
            g = g + decay * p.detach()
            p_norm, g_norm = p.detach().norm().item(), g.norm().item()
            g = g * (trust * p_norm / g_norm if p_norm > 0 and g_norm > 0 else 1.0)
        v.copy_(momentum * v + g)
        p.data.sub_(lr * v)


def test_lars_equals_a_loop_over_tensors() -> None:
    spec = OptimiserSpec("lars", base_lr=0.3, weight_decay=0.02, momentum=0.8, decay_one_dimensional=False)
    ours, slow = Model(), Model()
    with torch.no_grad():
        for model in (ours, slow):
            model.objectives["encoder"].weight.zero_()  # norm 0: no trust ratio
    optimiser = build_optimiser(rule_names(ours), spec)
    params = list(rule_names(slow).values())
    velocities = [torch.zeros_like(p) for p in params]
    for seed in range(4):
        set_hyperparameters(optimiser, spec, 0.3, Moment(0, 10, 10))
        optimiser.zero_grad()
        ours.loss(seed).backward()
        optimiser.step()
        for p in params:
            p.grad = None
        slow.loss(seed).backward()
        slow_lars_step(params, velocities, lr=0.3, momentum=0.8, decay=0.02, trust=1e-3)
    for name, value in rule_names(ours).items():
        torch.testing.assert_close(value, rule_names(slow)[name], msg=name)


def test_lars_leaves_parameters_without_gradient() -> None:
    p = nn.Parameter(torch.ones(3, 3))
    Lars([p], lr=1.0, weight_decay=0.1).step()
    assert torch.equal(p, torch.ones(3, 3))


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_sgd_is_torchs_to_the_bit(momentum: float) -> None:
    models = Model(), Model()
    models[1].load_state_dict(models[0].state_dict())
    options: dict[str, Any] = {"lr": 0.1, "momentum": momentum, "weight_decay": 0.01, "fused": True}
    ours, theirs = Sgd(models[0].parameters(), **options), torch.optim.SGD(models[1].parameters(), **options)
    for seed in range(3):
        for model, optimiser in zip(models, (ours, theirs), strict=True):
            optimiser.zero_grad()
            model.loss(seed).backward()
            optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


@pytest.mark.parametrize("name", ["lars", "lamb", "sgd", "adamw"])
def test_saved_and_loaded_the_next_step_is_bit_equal(name: Any) -> None:
    spec = OptimiserSpec(name, base_lr=0.1, weight_decay=0.1, decay_one_dimensional=False)
    model = Model()
    optimiser = build_optimiser(rule_names(model), spec)

    def step(model: Model, optimiser: torch.optim.Optimizer, seed: int) -> None:
        set_hyperparameters(optimiser, spec, 0.1, HALF)
        optimiser.zero_grad()
        model.loss(seed).backward()
        optimiser.step()

    start = copy.deepcopy(model.state_dict())
    step(model, optimiser, 0)
    assert not torch.equal(start["student.0.weight"], model.student[0].weight)
    other = copy.deepcopy(model)
    other_optimiser = build_optimiser(rule_names(other), spec)
    other_optimiser.load_state_dict(copy.deepcopy(optimiser.state_dict()))
    for one, two in ((model, optimiser), (other, other_optimiser)):
        step(one, two, 1)
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def test_rules_see_names_without_the_branch_and_the_first_one_counts() -> None:
    names = rule_names(Model())
    assert {"0.weight", "3.bias", "objectives.encoder.weight"} < set(names)
    assert not any("teacher" in name for name in names)
    spec = OptimiserSpec(
        "lars",
        base_lr=1.0,
        weight_decay=0.1,
        decay_one_dimensional=False,
        rules=(
            ParameterRule(r"^objectives\.", lr_scale=2.0, constant_lr=True),
            ParameterRule("", lr_scale=0.5, one_dimensional=True),
            ParameterRule("encoder", lr_scale=9.0),
            ParameterRule(r"^3\.weight$", weight_decay=False, adapt=False, frozen_epochs=1),
        ),
    )

    def key(name: str) -> Any:
        return group_key(name, names[name], spec)

    assert (key("objectives.encoder.weight").lr_scale, key("objectives.encoder.weight").constant_lr) == (2.0, True)
    assert (key("1.bias").lr_scale, key("0.weight").lr_scale) == (0.5, 1.0)
    assert (key("0.weight").decay, key("0.weight").adapt) == (True, True)
    assert (key("1.weight").decay, key("1.weight").adapt) == (False, False)
    assert (key("3.weight").decay, key("3.weight").adapt, key("3.weight").frozen_epochs) == (False, False, 1)


def test_hyperparameters_are_a_function_of_the_moment() -> None:
    spec = OptimiserSpec(
        "sgd",
        base_lr=1.0,
        weight_decay=Cosine(0.04, 0.4),
        decay_one_dimensional=False,
        warmup_epochs=1,
        rules=(ParameterRule("objectives", lr_scale=3.0, constant_lr=True),),
    )
    model = Model()
    optimiser = build_optimiser(rule_names(model), spec)
    for moment, lr in ((Moment(5, 110, 10), 1.0), (Moment(60, 110, 10), 1.0), (Moment(5, 110, 10), 1.0)):
        set_hyperparameters(optimiser, spec, 2.0, moment)
        rates = {(group["constant_lr"], group["decay"]): group for group in optimiser.param_groups}
        assert rates[False, True]["lr"] == pytest.approx(lr)
        assert rates[True, True]["lr"] == 6.0
        assert rates[False, True]["weight_decay"] == pytest.approx(Cosine(0.04, 0.4)(moment))
        assert rates[False, False]["weight_decay"] == 0.0


@pytest.mark.parametrize(("epochs", "last"), [(2, 19), (0.5, 4)])
def test_frozen_parameters_stay_for_their_epochs(epochs: float, last: int) -> None:
    spec = OptimiserSpec("adamw", base_lr=1.0, weight_decay=0.1, rules=(ParameterRule("3", frozen_epochs=epochs),))
    model = Model()
    optimiser = build_optimiser(rule_names(model), spec)
    for step, frozen in ((last, True), (last + 1, False)):
        model.zero_grad()
        model.loss(0).backward()
        drop_frozen_gradients(optimiser, Moment(step, 100, 10))
        assert (model.student[3].weight.grad is None) is frozen
        assert model.student[0].weight.grad is not None


@pytest.mark.parametrize("each", [True, False])
def test_clipping_bounds_norms_and_returns_the_norm_before(each: bool) -> None:
    spec = OptimiserSpec("sgd", base_lr=1.0, weight_decay=0.0, clip_norm=0.01, clip_each_parameter=each)
    model = Model()
    optimiser = build_optimiser(rule_names(model), spec)
    model.loss(0).backward()
    named = rule_names(model)
    before = {name: p.grad.clone() for name, p in named.items()}
    total = torch.cat([grad.flatten() for grad in before.values()]).norm()
    torch.testing.assert_close(clip_gradients(optimiser, spec), total)
    for name, p in named.items():
        norm = before[name].norm() if each else total
        expected = before[name] * min(1.0, 0.01 / float(norm + 1e-6))
        torch.testing.assert_close(p.grad, expected, msg=name)


def test_epsilon_is_added_to_the_gradients_norm() -> None:
    parameter = nn.Parameter(torch.tensor([3.0, 4.0]))  # norm 5
    parameter.grad = torch.tensor([0.6, 0.8])  # norm 1
    Lars([parameter], lr=1.0, trust_coefficient=0.1, eps=4.0).step()
    torch.testing.assert_close(parameter.detach(), torch.tensor([3.0, 4.0]) - 0.1 * torch.tensor([0.6, 0.8]))
