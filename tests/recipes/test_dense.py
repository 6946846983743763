from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from dovetail.errors import DovetailError
from dovetail.recipe import Recipe, SameHead, Tap
from dovetail.recipes.dense import METHODS, densecl, pixpro
from dovetail.schedules import Moment, value_at
from dovetail.views.view import View

ENCODER = {
    "c4": Tap(12, 16, "map", "encoder"),
    "c5": Tap(20, 32, "map", "encoder"),
    "p2": Tap(6, 4, "map", "decoder"),
}
SMALL: dict[str, dict[str, Any]] = {"densecl": {"queue": 16}, "pixpro": {"instance_weight": 1.0}}


def small(name: str) -> Recipe:
    return METHODS[name](ENCODER, hidden=8, dim=4, **SMALL[name])


@pytest.mark.parametrize("name", METHODS)
def test_sits_on_the_deepest_map_of_the_encoder(name: str) -> None:
    recipe = small(name)
    recipe.check(ENCODER)
    assert recipe.name == name
    assert [term.tap for term in recipe.terms] == ["c5"]


@pytest.mark.parametrize("name", METHODS)
def test_a_model_without_a_map_is_refused(name: str) -> None:
    with pytest.raises(DovetailError):
        METHODS[name]({"cls": Tap(20, 16, "vector", "encoder")})


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("tap", ENCODER)
def test_loss_reaches_every_parameter_of_the_student_on_any_tap(name: str, tap: str) -> None:
    """The same head and objective specs serve taps of any width, as on the levels of a decoder."""
    torch.manual_seed(0)
    recipe = small(name)
    (term,) = recipe.terms
    assert not isinstance(term.head, SameHead)
    head, teacher = term.head.build(ENCODER[tap].channels), term.head.build(ENCODER[tap].channels)
    objective = term.objective.build(term.head)
    maps = [torch.randn(2, ENCODER[tap].channels, 3, 4, requires_grad=True) for _ in range(2)]
    box = torch.tensor([[0.0, 0.0, 0.7, 0.8], [0.1, 0.0, 1.0, 0.9]])
    view = View(torch.zeros(2, 3, 96, 128), box, torch.tensor([False, True]), torch.full((2, 2), 160.0))
    with torch.no_grad():
        targets = [teacher(value) for value in maps]
    loss = objective([head(value) for value in maps], targets, [view, view], Moment(0, 1, 1))
    loss.total.backward()
    for module in (head, objective):
        assert isinstance(module, nn.Module)
        for parameter_name, parameter in module.named_parameters():
            assert parameter.grad is not None, parameter_name
    assert maps[0].grad is not None
    assert bool(maps[0].grad.any())
    assert (maps[1].grad is None) == (name == "densecl")  # DenseCL is one-way


def test_densecl_has_the_settings_of_the_paper() -> None:
    recipe = densecl(ENCODER)
    optimiser = recipe.optimiser
    assert optimiser.name == "sgd"
    assert optimiser.decay_one_dimensional
    assert optimiser.lr_schedule(optimiser.peak_lr(recipe.batch_size))(Moment(0, 800, 1)) == 0.3
    assert optimiser.lr_schedule(optimiser.peak_lr(recipe.batch_size))(Moment(800, 800, 1)) == 0
    assert recipe.teacher_momentum is not None
    assert value_at(recipe.teacher_momentum, Moment(700, 800, 1)) == 0.999
    assert recipe.shuffle_batch_norm
    assert recipe.export == "student"
    first, second = recipe.views.views
    assert first == second
    assert first.scale == (0.2, 1.0)
    assert first.photometric.saturation == 0.4
    assert first.photometric.solarise_p == 0


def test_pixpro_has_the_settings_of_the_paper() -> None:
    recipe = pixpro(ENCODER)
    optimiser = recipe.optimiser
    peak = optimiser.peak_lr(recipe.batch_size)
    assert peak == 4.0
    assert optimiser.name == "lars"
    assert not optimiser.decay_one_dimensional
    assert optimiser.lr_schedule(peak)(Moment(0, 1000, 10)) == pytest.approx(0.04)
    assert optimiser.lr_schedule(peak)(Moment(50, 1000, 10)) == pytest.approx(4.0)
    assert recipe.teacher_momentum is not None
    assert value_at(recipe.teacher_momentum, Moment(0, 10, 1)) == pytest.approx(0.99)
    assert value_at(recipe.teacher_momentum, Moment(10, 10, 1)) == pytest.approx(1.0)
    first, second = recipe.views.views
    assert (first.photometric.blur_p, second.photometric.blur_p) == (1.0, 0.1)
    assert (first.photometric.solarise_p, second.photometric.solarise_p) == (0.0, 0.2)
    assert first.interpolation == "bilinear"
    assert recipe.views.min_overlap == 0
    assert replace(first, photometric=second.photometric) == second


def test_pixpros_instance_branch_comes_with_its_weight() -> None:
    for weight, wanted in ((0.0, False), (1.0, True)):
        (term,) = pixpro(ENCODER, hidden=8, dim=4, instance_weight=weight).terms
        assert not isinstance(term.head, SameHead)
        names = [name for name, _ in term.head.build(8).named_parameters()]
        names += [name for name, _ in term.objective.build(term.head).named_parameters()]
        assert any("instance" in name for name in names) is wanted
