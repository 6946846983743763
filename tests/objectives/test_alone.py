"""Losses by themselves: the examples of their docstrings, and the numbers of a run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
import torch

import dovetail.objectives
from dovetail.errors import DovetailError
from dovetail.heads.vector import VectorHeadSpec
from dovetail.objectives import ObjectiveSpec, RegressSpec
from dovetail.recipes.registry import METHODS
from tests.tiny import START, make_views, tiny_learner

MODULES = sorted(one.name for one in pkgutil.iter_modules(dovetail.objectives.__path__))
WITHOUT = {"ObjectiveSpec", "CentredSpec", "SelfPatchSpec"}  # two contracts, and a sum of others' losses


# The terms of the others are on segments, or compare with other taps: only a learner prepares their outputs.
COMPARED = sorted(METHODS.keys() - {"detcon", "encoder-targets"})


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name: str) -> None:
    module = importlib.import_module(f"dovetail.objectives.{name}")
    results = doctest.testmod(module)
    assert results.failed == 0
    specs = [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, ObjectiveSpec)]
    own = [one for one in specs if one.__module__ == module.__name__ and one.__name__ not in WITHOUT]
    assert [one.__name__ for one in own if ">>>" not in (one.__doc__ or "")] == []
    assert {one.__name__ for one in own} <= set(dovetail.objectives.__all__)


@pytest.mark.parametrize("name", dovetail.objectives.__all__)
def test_names_are_there(name: str) -> None:
    assert getattr(dovetail.objectives, name).__name__ == name
    assert name in dir(dovetail.objectives)


@pytest.mark.parametrize("method", COMPARED)
def test_the_numbers_are_those_of_a_run(method: str) -> None:
    learner = tiny_learner(method)
    views = make_views(learner.recipe.views, seed=1)
    whole = learner(views, START)
    student, teacher = learner.student_outputs(views), learner.teacher_outputs(views)
    for term in learner.recipe.terms:
        alone = term.objective.build(learner.recipe.head_of(term))
        alone.load_state_dict(learner.objectives[term.name].state_dict())
        seen = [view for view in views if view.role in term.roles]
        seen = seen if alone.needs_views else []
        loss = alone(student[term.name], teacher.get(term.name, []), seen, START)
        torch.testing.assert_close(loss.total, whole.parts[f"{term.name}/loss"], rtol=1e-5, atol=1e-6)


def test_a_tensor_in_the_place_of_a_list_is_refused() -> None:
    loss = RegressSpec(predictor=None).build(VectorHeadSpec(dim=8))
    with pytest.raises(DovetailError, match="teacher is a tensor; pass a list"):
        loss([torch.zeros(2, 8)], torch.zeros(2, 8))


@pytest.mark.parametrize(("method", "name"), [("slotcon", "SlotObjective"), ("selfpatch", "SelfPatchObjective")])
def test_a_loss_of_positions_is_not_computed_without_the_views(method: str, name: str) -> None:
    learner = tiny_learner(method)
    views = make_views(learner.recipe.views)
    student, teacher = learner.student_outputs(views), learner.teacher_outputs(views)
    (term,) = learner.recipe.terms
    with pytest.raises(DovetailError, match=f"{name} needs the views of the .* outputs, got 0; pass views="):
        learner.objectives[term.name](student[term.name], teacher[term.name])
