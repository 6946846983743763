"""No step waits for the device: with torch's fake tensors, which have shapes but no numbers, whatever asks for a number
(`.item()`, boolean indexing, `if tensor`) is an error, so a step that passes with them starts a GPU's work and goes on.
Nor does a step mix devices: such tensors can claim to be a GPU's where there is none, and meet no others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from dovetail.objectives import slots
from dovetail.recipe import OptimiserSpec
from dovetail.recipes.table import METHODS as BASES
from dovetail.recipes.table import examples
from dovetail.schedules import Moment
from dovetail.train.learner import Learner
from dovetail.train.optimisers import (
    build_optimiser,
    clip_gradients,
    drop_frozen_gradients,
    rule_names,
    set_hyperparameters,
)
from dovetail.views import photometric
from dovetail.views.plan import Photometric
from dovetail.views.view import View
from tests.tiny import START, make_views, shallow_learner

# Every base once, by itself or where it is a part of another, and one of each kind around a base; the rest is slow.
AROUND = {"decon-sl": "slotcon", "decon-ml-simclr": "simclr", "adclr-dino": "dino", "adclr-ibot": "ibot"}
QUICK = {name for name in examples() if name in BASES and name not in AROUND.values()} | AROUND.keys()
METHODS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in examples()]
OPTIMISERS = {"lars": "slotcon", "sgd": "simsiam", "adamw": "dino"}  # and a method that has it


@pytest.fixture(autouse=True)
def same_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look for GPUs once: for fake tensors, torch does so at every operation, which takes longer than most of them."""
    available = torch.cuda.is_available()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)


def shape_of(value: Tensor, device: str) -> Any:
    """Return, within a `FakeTensorMode`, a tensor that has a shape alone and says that it lies on `device`."""
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=device)


def lose_numbers(learner: Learner, device: str = "cpu") -> None:
    """Put tensors that have shapes alone in the place of all weights and buffers."""
    made: dict[Tensor, Any] = {}
    for module in learner.modules():
        for name, value in module._parameters.items():
            if value is not None:
                fake = made.setdefault(value, nn.Parameter(shape_of(value, device), value.requires_grad))
                module._parameters[name] = fake
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = made.setdefault(buffer, shape_of(buffer, device))


def without_numbers(view: View, device: str = "cpu") -> View:
    """Return a view whose tensors have shapes alone."""
    tensors = {name: value for name, value in vars(view).items() if isinstance(value, Tensor)}
    return replace(view, **{name: shape_of(value, device) for name, value in tensors.items()})


def take_step(learner: Learner, views: list[View], optimiser: torch.optim.Optimizer, spec: OptimiserSpec) -> None:
    """All that happens on the device in a step, as the engine does it."""
    loss = learner(views, START)
    loss.total.backward()
    learner.update()
    set_hyperparameters(optimiser, spec, 0.1, START)
    drop_frozen_gradients(optimiser, START)
    clip_gradients(optimiser, spec)
    optimiser.step()
    optimiser.zero_grad()
    learner.move_teacher(Moment(1, 100, 10))


@pytest.mark.parametrize("method", METHODS)
def test_a_step_waits_for_no_number(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "on_host", lambda value: False)
    learner = shallow_learner(method)
    views = make_views(learner.recipe.views)
    with FakeTensorMode(allow_non_fake_inputs=True):
        lose_numbers(learner)
        views = [without_numbers(view) for view in views]
        spec = learner.recipe.optimiser
        optimiser = build_optimiser(rule_names(learner), spec)
        take_step(learner, views, optimiser, spec)


@pytest.mark.parametrize(("optimiser", "method"), OPTIMISERS.items())
def test_an_optimiser_with_state_waits_for_no_number(optimiser: str, method: str) -> None:
    """In the first step, optimisers make their state."""
    learner = shallow_learner(method)
    spec = learner.recipe.optimiser
    assert spec.name == optimiser
    with FakeTensorMode(allow_non_fake_inputs=True):
        lose_numbers(learner)
        built = build_optimiser(rule_names(learner), spec)
        for moment in (START, Moment(1, 100, 10)):
            for value in learner.parameters():
                value.grad = torch.zeros_like(value) if value.requires_grad else None
            set_hyperparameters(built, spec, 0.1, moment)
            drop_frozen_gradients(built, moment)
            clip_gradients(built, spec)
            built.step()
        assert built.state


@pytest.mark.parametrize("method", METHODS)
def test_a_step_stays_on_its_device(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the backward pass and the optimiser: torch's own, which ask for the device itself."""
    monkeypatch.setattr(slots, "on_host", lambda value: False)
    learner = shallow_learner(method)
    views = make_views(learner.recipe.views)
    with FakeTensorMode(allow_non_fake_inputs=True):
        lose_numbers(learner, "cuda")
        loss = learner([without_numbers(view, "cuda") for view in views], START)
        learner.update()
        learner.move_teacher(Moment(1, 100, 10))
    assert {value.device.type for value in (loss.total, *learner.state_dict().values())} == {"cuda"}


def test_this_way_of_looking_finds_what_mixes_devices() -> None:
    with FakeTensorMode(allow_non_fake_inputs=True):
        value = shape_of(torch.ones(2), "cuda")
        with pytest.raises(RuntimeError, match="on the same device"):
            value + torch.ones(2)


@pytest.mark.parametrize("ask", [float, bool, lambda value: torch.ones(1)[value > 0], Tensor.nonzero])
def test_this_way_of_looking_finds_what_waits(ask: Callable[[Tensor], Any]) -> None:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        value = mode.from_tensor(torch.ones(1))
        with pytest.raises((DataDependentOutputException, DynamicOutputShapeException)):
            ask(value)


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_and_blur_wait_for_no_number(channels: int) -> None:
    spec = Photometric(
        jitter_p=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, grey_p=0.5, blur_p=0.5, solarise_p=0.5
    )
    rng = np.random.default_rng(0)
    parameters = torch.from_numpy(np.stack([photometric.draw(rng, spec) for _ in range(32)]))
    pixels = photometric.apply(torch.zeros(32, channels, 16, 16, device="meta"), parameters)
    photometric.normalise(pixels, [0.5] * channels, [0.25] * channels)
