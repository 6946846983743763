"""The laws that every method of the table obeys, alone and composed; a new line in the table is tested by itself."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from dovetail.errors import DovetailError
from dovetail.recipes import registry
from dovetail.recipes.table import examples
from dovetail.schedules import Moment
from dovetail.train.learner import Learner
from dovetail.views.view import View
from tests.tiny import START, make_views, tiny_learner, tiny_recipe

METHODS = [*examples(), "simclr+decon-sl"]  # the last one: a teacher for the decoder's method alone
OUTSIDE = ["own_method:lejepa", "decon-sl-own_method:lejepa", "own_method:lejepa+decon-sl"]  # as a user brings one
SAMPLED = ["decon-sl", "decon-ml-densecl", "decon-sl-pixpro"]  # one of each kind of points
FEW_CELLS = {"decoder_cells": 40}


# Image methods with a decoder: on one level one of each kind is quick, on all levels one; alone, each is.
IMAGE = {name for name, method in registry.METHODS.items() if method.family == "image"}
SLOW = {f"decon-sl-{name}" for name in IMAGE - {"simclr", "moco-v2", "byol", "vicreg"}}
SLOW |= {f"decon-ml-{name}" for name in IMAGE - {"simclr"}} | {"decon-ml-pixpro", "decon-ml-detcon"}
CASES = [*METHODS, *(f"{name} sampled" for name in SAMPLED), *OUTSIDE]
# Tiny networks are slow in half precision without a processor's help, so of what is composed one of each kind is quick.
HALF = {*registry.METHODS, "decon-sl", "decon-ml", "adclr-dino", "dino+decon-sl", "decon-sl-pixpro sampled", OUTSIDE[0]}


def marked(quick: set[str]) -> list[Any]:
    """Return all cases, those that are not quick marked as slow."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in CASES]


class Exact(NamedTuple):
    """What several laws compare with: views, the loss and its parts, and a copy of the learner with its gradients."""

    views: list[View]
    total: Tensor
    parts: dict[str, Tensor]
    learner: Learner


@pytest.fixture(params=marked({*CASES} - SLOW), scope="module")
def learner(request: pytest.FixtureRequest) -> Iterator[Learner]:
    """A learner after one step, so that queues, centres and the teacher are away from their start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(Path(__file__).parents[1] / "examples")
        before = dict(registry.METHODS)
        registry.name_of(request.param.partition(" ")[0])
        yield after_a_step(request.param)
        registry.METHODS.clear()
        registry.METHODS.update(before)


@pytest.fixture(scope="module")
def exact(learner: Learner) -> Exact:
    """The loss in single precision, computed once for all laws; the learner stays as it was."""
    copied, views = copy.deepcopy(learner), make_views(learner.recipe.views)
    torch.manual_seed(0)
    loss = copied(views, START)
    loss.total.backward()
    return Exact(views, loss.total.detach(), {name: value.detach() for name, value in loss.parts.items()}, copied)


def after_a_step(asked: str) -> Learner:
    """Return a learner of a method, " sampled" behind its name for sampled cells, after one step."""
    method, _, sampled = asked.partition(" ")
    learner = tiny_learner(method, **(FEW_CELLS if sampled else {}))
    optimiser = torch.optim.SGD((p for p in learner.parameters() if p.requires_grad), lr=0.05)
    learner(make_views(learner.recipe.views, seed=7), START).total.backward()
    optimiser.step()
    optimiser.zero_grad()
    learner.update()
    learner.move_teacher(Moment(50, 100, 10))
    return learner


def loss_of(learner: Learner, views: list[View], seed: int = 0) -> Tensor:
    """Return the loss with the dropouts of `seed`."""
    torch.manual_seed(seed)
    return learner(views, START).total


def test_every_trainable_parameter_gets_a_gradient(exact: Exact) -> None:
    trainable = {name: value for name, value in exact.learner.named_parameters() if value.requires_grad}
    assert trainable
    assert [name for name, value in trainable.items() if value.grad is None] == []
    # A bias in front of BatchNorm has no influence; nothing else may be without one.
    idle = [name for name, value in trainable.items() if value.dim() > 1 and not value.grad.abs().sum() > 0]
    assert idle == []


def test_the_whole_teacher_moves_towards_the_student(learner: Learner) -> None:
    if learner.teacher is None:
        pytest.skip("this method has no teacher")
    learner = copy.deepcopy(learner)
    with torch.no_grad():
        for parameter in learner.student.parameters():
            parameter.add_(torch.randn_like(parameter))
    before = {name: value.clone() for name, value in learner.teacher.named_parameters()}
    student = dict(learner.student.named_parameters())
    moment = Moment(30, 100, 10)
    learner.move_teacher(moment)
    momentum = learner.momentum(moment)
    for name, value in learner.teacher.named_parameters():
        torch.testing.assert_close(value, momentum * before[name] + (1 - momentum) * student[name])
        assert not torch.equal(value, before[name]), name


def test_the_teacher_gets_no_gradient(learner: Learner) -> None:
    if learner.teacher is None:
        pytest.skip("this method has no teacher")
    assert not any(parameter.requires_grad for parameter in learner.teacher.parameters())


def test_either_branch_can_be_exported(learner: Learner) -> None:
    method, taps = learner.recipe.name, learner.student.network.taps
    if learner.teacher is None:
        with pytest.raises(DovetailError, match=f"{re.escape(method)} has no (option|teacher).*'export'"):
            tiny_recipe(method, taps, export="teacher")
        return
    assert learner.exported is (learner.teacher if learner.recipe.export == "teacher" else learner.student).network
    for branch in ("student", "teacher"):
        asked = copy.copy(learner)
        asked.recipe = tiny_recipe(method, taps, export=branch, **(FEW_CELLS if learner.recipe.views.points else {}))
        assert asked.exported is getattr(asked, branch).network
        assert replace(asked.recipe, export=learner.recipe.export) == learner.recipe


def test_weight_zero_leaves_a_term_out(learner: Learner, exact: Exact) -> None:
    if len(learner.recipe.terms) == 1:
        pytest.skip("this method has one term")
    without = copy.deepcopy(learner)
    for left_out in learner.recipe.terms:
        without.recipe = learner.recipe.with_terms(
            *(replace(term, weight=0.0) if term is left_out else term for term in learner.recipe.terms)
        )
        part = exact.parts[f"{left_out.name}/loss"] * learner_weight(left_out.weight)
        with torch.no_grad():
            rest = loss_of(without, exact.views)
        torch.testing.assert_close(rest + part, exact.total, rtol=1e-5, atol=1e-6)


def learner_weight(weight: Any) -> float:
    """Return a term's weight at the start."""
    return weight if isinstance(weight, float) else weight(START)


def test_the_order_of_images_changes_nothing(learner: Learner) -> None:
    learner = copy.deepcopy(learner).double()
    for branch in (learner.student, learner.teacher):
        if branch is not None:
            branch.network = branch.network.following(replace(branch.network.rules, lateral_dropout=None))
    views = make_views(learner.recipe.views, dtype=torch.float64)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = [view.mapped(lambda value: value[order]) for view in views]
    with torch.no_grad():
        torch.testing.assert_close(loss_of(learner, shuffled), loss_of(learner, views), rtol=1e-7, atol=1e-9)


def test_saved_and_loaded_the_next_loss_is_bit_equal(learner: Learner, exact: Exact) -> None:
    restored = copy.deepcopy(learner)
    with torch.no_grad():
        for value in restored.state_dict().values():
            value.zero_()
        restored.load_state_dict(learner.state_dict())
        assert torch.equal(loss_of(restored, exact.views), exact.total)


@pytest.mark.parametrize("learner", marked(HALF), indirect=True)
def test_the_loss_under_half_precision_is_close(learner: Learner, exact: Exact) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        rounded = loss_of(copy.deepcopy(learner), exact.views).detach()
    assert rounded.dtype == torch.float32
    assert torch.isfinite(rounded)
    assert abs(float(rounded) - float(exact.total)) < 0.15 * (1 + abs(float(exact.total)))
