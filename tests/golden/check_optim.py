"""Optimisers and clipping against official steps."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer

from dovetail.recipe import OptimiserSpec
from dovetail.schedules import Moment
from dovetail.train.optimisers import (
    Lars,
    build_optimiser,
    clip_gradients,
    parameter_groups,
    set_hyperparameters,
)
from tests.golden.vectors import Comparison, Golden

MOMENT = Moment(step=0, total_steps=1, steps_per_epoch=1)


class Net(nn.Module):
    """The network of the vectors."""

    def __init__(self, golden: Golden) -> None:
        super().__init__()
        out, hidden = golden["initial.linear2.weight"].shape
        width = golden["initial.linear1.weight"].shape[1]
        self.linear1, self.bn, self.linear2 = nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, out)
        self.double()
        self.load_state_dict(golden.under("initial"), strict=False)

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return self.linear2(F.relu(self.bn(self.linear1(value))))


def lars_spec(golden: Golden) -> OptimiserSpec:
    config = golden.config
    return OptimiserSpec("lars", config["lr"], config["weight_decay"], config["momentum"], decay_one_dimensional=False)


def slotcon_lars(net: nn.Module, golden: Golden) -> Optimizer:
    spec = lars_spec(golden)
    optimiser = build_optimiser(dict(net.named_parameters()), spec)
    for group in optimiser.param_groups:
        group["trust_coefficient"] = golden.config["lars_trust_coefficient"]
    set_hyperparameters(optimiser, spec, golden.config["lr"], MOMENT)
    return optimiser


def pixpro_lars(net: nn.Module, golden: Golden) -> Optimizer:
    spec = lars_spec(golden)
    optimiser = Lars(
        parameter_groups(dict(net.named_parameters()), spec),
        lr=golden.config["lr"],
        momentum=golden.config["momentum"],
        trust_coefficient=golden.config["lars_trust_coefficient"],
        eps=golden.config["pixpro_eps"],
    )
    set_hyperparameters(optimiser, spec, golden.config["lr"], MOMENT)
    return optimiser


def sgd(net: nn.Module, golden: Golden) -> Optimizer:
    config = golden.config
    spec = OptimiserSpec("sgd", config["sgd_lr"], config["weight_decay"], config["momentum"])
    optimiser = build_optimiser(dict(net.named_parameters()), spec)
    set_hyperparameters(optimiser, spec, config["sgd_lr"], MOMENT)
    return optimiser


def check(golden: Golden) -> Iterator[Comparison]:
    for name, build in (("slotcon_lars", slotcon_lars), ("pixpro_lars", pixpro_lars), ("sgd", sgd)):
        net = Net(golden)
        optimiser = build(net, golden)
        for step, (value, target) in enumerate(zip(golden["input"], golden["target"], strict=True), start=1):
            at = f"{name}.step{step}"
            loss = F.mse_loss(net(value), target)
            optimiser.zero_grad()
            loss.backward()
            yield Comparison(f"{at}.loss", loss, golden[f"{at}.loss"])
            for key, parameter in net.named_parameters():
                expected = golden[f"{at}.grad.{key}"]
                # A bias in front of BatchNorm has gradients that cancel to zero.
                scale = max(float(expected.abs().max()), float(loss.detach()))
                yield Comparison(f"{at}.grad.{key}", parameter.grad.clone(), expected, scale=scale)
            optimiser.step()
            for key, parameter in net.named_parameters():
                yield Comparison(f"{at}.expected.{key}", parameter.clone(), golden[f"{at}.expected.{key}"])
    yield from check_zero_parameter(golden)
    yield from check_clip(golden)


def check_zero_parameter(golden: Golden) -> Iterator[Comparison]:
    """A parameter of norm 0 is stepped without a trust ratio: `-lr g`.

    The sidecar does not state this case's learning rate, so the least squares fit of the stored step gives it.
    """
    case = "slotcon_lars_zero_param"
    grad, expected = golden[f"{case}.grad"], golden[f"{case}.expected.after_one_step"]
    lr = -float((expected * grad).sum() / grad.square().sum())
    parameter = nn.Parameter(torch.zeros_like(grad))
    parameter.grad = grad.clone()
    spec = lars_spec(golden)
    optimiser = build_optimiser({"weight": parameter}, spec)
    set_hyperparameters(optimiser, spec, lr, MOMENT)
    optimiser.step()
    yield Comparison(case, parameter, expected)


def check_clip(golden: Golden) -> Iterator[Comparison]:
    net = Net(golden)
    for key, parameter in net.named_parameters():
        parameter.grad = golden[f"dino_clip.grad_before.{key}"].clone()
    spec = OptimiserSpec("adamw", 1.0, 0.0, clip_norm=golden.config["dino_clip"], clip_each_parameter=True)
    clip_gradients(build_optimiser(dict(net.named_parameters()), spec), spec)
    for key, parameter in net.named_parameters():
        yield Comparison(f"dino_clip.{key}", parameter.grad, golden[f"dino_clip.expected.grad_after.{key}"])
