"""Training that collapses says so in its log, and training that does not says nothing of the kind.

The same images, networks and optimisers; only what keeps a method from collapsing is taken out of its recipe.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dovetail.heads.vector import VectorHeadSpec
from dovetail.networks.build import build_network
from dovetail.objectives.regress import RegressSpec
from dovetail.recipe import OptimiserSpec, Recipe, Term
from dovetail.train.learner import Learner
from dovetail.train.monitors import MIN_SPREAD
from dovetail.train.prototypes import MIN_USED
from tests.tiny import tiny_learner, tiny_recipe
from tests.train.runs import EIGHT, run, settings

VIT = "timm/test_vit+fpn"


def readings(out: Path, learner: Learner, lr: float, name: str) -> tuple[list[float], str]:
    """Train for twelve steps, and return one number of each step and the log."""
    chosen = settings(epochs=4, lr=lr, log_every_steps=1, **EIGHT)
    run(out, chosen, learner=learner)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line[name]["cls"] for line in lines], (out / "train.log").read_text()


def without_predictor(recipe: Recipe) -> Recipe:
    """BYOL whose teacher is the student itself, with nothing but a linear map between features and loss."""

    def edit(term: Term) -> Term:
        assert isinstance(term.objective, RegressSpec)
        assert isinstance(term.head, VectorHeadSpec)
        head = replace(term.head, layers=1, norm=False)
        return replace(term, objective=replace(term.objective, predictor=None), head=head)

    return replace(recipe.with_terms(*map(edit, recipe.terms)), teacher_momentum=0.0)


@pytest.mark.parametrize("collapses", [False, True])
def test_features_that_training_collapses_are_warned_of(tmp_path: Path, collapses: bool) -> None:
    torch.manual_seed(0)
    network = build_network(VIT, image_size=64)
    recipe = replace(tiny_recipe("byol", network.taps), optimiser=OptimiserSpec("sgd", base_lr=0.1, weight_decay=0.0))
    learner = Learner(without_predictor(recipe) if collapses else recipe, network)
    spread, log = readings(tmp_path, learner, 0.1, "spread")
    assert spread[0] > 10 * MIN_SPREAD  # it was training that did it
    assert (spread[-1] < MIN_SPREAD) == collapses
    assert ("The features of cls are collapsing" in log) == collapses
    assert ("readings in a row. Try" in log) == collapses


@pytest.mark.parametrize("collapses", [False, True])
def test_prototypes_that_training_collapses_are_warned_of(tmp_path: Path, collapses: bool) -> None:
    """DINO with and without a teacher that lags behind and whose outputs are centred."""
    kept = {"momentum": 0.0, "centre_momentum": 1.0} if collapses else {"momentum": 0.9, "centre_momentum": 0.5}
    warm = {"teacher_temperature": 0.1, "warmup_temperature": 0.1, "student_temperature": 0.2}
    learner = tiny_learner("dino", seed=3, warmup_epochs=0.0, local_crops=0, frozen_epochs=0, **warm, **kept)
    used, log = readings(tmp_path, learner, 1e-3, "prototypes_used")
    assert used[0] > MIN_USED
    assert (used[-1] < MIN_USED) == collapses
    assert ("The prototypes of cls are collapsing: the teacher puts nearly all" in log) == collapses
