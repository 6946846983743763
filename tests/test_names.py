"""Names that no field's type lists are errors, wherever in a recipe they stand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from dovetail.errors import DovetailError
from dovetail.names import check_names
from dovetail.recipe import LateralDropout, OptimiserSpec, QueryRule, Recipe, Target
from dovetail.train.optimisers import build_optimiser
from tests.tiny import tiny_learner


def recipe() -> Recipe:
    return tiny_learner("slotcon").recipe


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda one: {"optimiser": replace(one.optimiser, name="muon")}, "no name of OptimiserSpec 'muon'"),
        (lambda one: {"export": "techer"}, "no export of Recipe 'techer'; did you mean 'teacher'"),
        (lambda one: {"teacher_buffers": "moved"}, "no teacher_buffers of Recipe 'moved'"),
        (lambda one: {"teacher_views": ("gobal",)}, "no teacher_views of Recipe 'gobal'; did you mean 'global'"),
        (lambda one: {"query_rule": QueryRule(positions="sine")}, "no positions of QueryRule 'sine'"),
        (lambda one: {"lateral_dropout": LateralDropout(0.5, "chanel")}, "did you mean 'channel'"),
        (lambda one: {"terms": (replace(one.terms[0], roles=("locl",)),)}, "no roles of Term 'locl'"),
        (lambda one: {"terms": (replace(one.terms[0], target=Target("c5", ("x",))),)}, "no roles of Target 'x'"),
        (lambda one: {"views": replace(one.views, views=(replace(one.views.views[0], role="big"),))}, "role of"),
    ],
)
def test_a_wrong_name_in_a_recipe_gets_a_sentence(change: Any, sentence: str) -> None:
    one = recipe()
    with pytest.raises(DovetailError, match=sentence):
        replace(one, **change(one))


def test_free_text_is_free() -> None:
    one = recipe()
    check_names(replace(one, name="anything", terms=(replace(one.terms[0], name="of my own"),)))


def test_an_optimiser_outside_of_a_recipe_is_refused_too() -> None:
    named = {"weight": nn.Parameter(torch.ones(2, 2))}
    with pytest.raises(DovetailError, match="no optimiser 'muon'"):
        build_optimiser(named, OptimiserSpec("muon", base_lr=1.0, weight_decay=0.0))  # type: ignore[arg-type]
