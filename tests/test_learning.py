"""Every method learns: a run of seconds beats a random network in a frozen-feature pixel probe, and a collapsed one
does not. The runs and their margins are those of `benchmarks.toy`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from benchmarks.toy import TRIALS, Bench, Trial, trial_of
from torch import Tensor

from dovetail.heads.base import HeadSpec
from dovetail.heads.vector import VectorHeadSpec
from dovetail.objectives.distill import DistillSpec
from dovetail.objectives.objective import Loss, Objective, ObjectiveSpec
from dovetail.objectives.regress import RegressSpec
from dovetail.objectives.slots import SlotSpec
from dovetail.recipe import Recipe, Term
from dovetail.recipes.table import build
from dovetail.run import resolve
from dovetail.schedules import Moment
from dovetail.views.view import View

Edit = Callable[[Recipe], Recipe]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Tiles, mosaics and a folder for runs."""
    torch.set_num_threads(1)
    return Bench.make(tmp_path_factory.mktemp("toy"))


@pytest.mark.slow
@pytest.mark.parametrize("trial", TRIALS, ids=[trial.method for trial in TRIALS])
def test_a_short_run_beats_a_random_network(bench: Bench, trial: Trial) -> None:
    outcome = bench.run(trial, seed=0)
    assert outcome.passes(trial), outcome


@pytest.mark.slow
@pytest.mark.parametrize("method", ["decon-sl", "decon-sl-densecl", "decon-sl-pixpro"])
def test_a_short_run_with_sampled_cells_beats_a_random_network_too(bench: Bench, method: str) -> None:
    """At 64 points of a map of 16 x 16 cells, as many as the trials without them have after pooling, or fewer."""
    trial = trial_of(method)
    sampled = {name: value for name, value in trial.recipe.items() if name != "decoder_grid"} | {"decoder_cells": 64}
    trial = replace(trial, recipe=sampled)
    outcome = bench.run(trial, seed=0)
    assert outcome.passes(trial), outcome


class PullTogether(Objective):
    """The mean cosine of both views' vectors, with gradient on both sides: nothing keeps images apart."""

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], views: Sequence[View], moment: Moment
    ) -> Loss:
        return Loss(-F.cosine_similarity(student[0], student[1]).mean(), {})


@dataclass(frozen=True)
class PullTogetherSpec(ObjectiveSpec):
    """SimSiam without its stop-gradient and its predictor."""

    def build(self, head: HeadSpec) -> Objective:
        return PullTogether()


def every_term(recipe: Recipe, edit: Callable[[Term], Term]) -> Recipe:
    """Return the recipe with all its terms edited."""
    return recipe.with_terms(*map(edit, recipe.terms))


def without_stop_gradient(recipe: Recipe) -> Recipe:
    """SimSiam: both sides move, and no BatchNorm keeps the projections apart."""

    def edit(term: Term) -> Term:
        assert isinstance(term.head, VectorHeadSpec)
        return replace(term, head=replace(term.head, last_norm="none"), objective=PullTogetherSpec())

    return every_term(recipe, edit)


def without_predictor(recipe: Recipe) -> Recipe:
    """BYOL: the teacher is the student itself, and nothing stands between them."""

    def edit(term: Term) -> Term:
        assert isinstance(term.objective, RegressSpec)
        return replace(term, objective=replace(term.objective, predictor=None))

    return replace(every_term(recipe, edit), teacher_momentum=0.0)


def without_centring(recipe: Recipe) -> Recipe:
    """DINO, SlotCon's groups: the teacher is the student itself, and the centre never leaves zero."""

    def edit(term: Term) -> Term:
        assert isinstance(term.objective, (DistillSpec, SlotSpec))
        objective = replace(term.objective, centre_momentum=1.0)
        if isinstance(objective, SlotSpec):
            objective = replace(objective, group_weight=1.0)
        return replace(term, objective=objective)

    return replace(every_term(recipe, edit), teacher_momentum=0.0)


COLLAPSES: dict[str, Edit] = {
    "simsiam": without_stop_gradient,
    "byol": without_predictor,
    "slotcon": without_centring,
    "dino": without_centring,
}


@pytest.mark.slow
@pytest.mark.parametrize("method", COLLAPSES)
def test_a_collapsed_run_fails(bench: Bench, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    edit = COLLAPSES[method]
    monkeypatch.setattr(resolve, "build", lambda name, taps, options: edit(build(name, taps, options)))
    trial = trial_of(method)
    outcome = bench.run(trial, seed=0)
    assert not outcome.passes(trial), outcome
