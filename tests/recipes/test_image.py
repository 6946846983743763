"""The image-level recipes: their tap, their optimiser's rules, their pieces, and a step of each on any tap."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from dovetail.objectives.contrast import KeyContrastSpec, QueueContrastSpec
from dovetail.objectives.regress import RegressSpec
from dovetail.recipe import Recipe, SameHead, Tap
from dovetail.recipes.image import METHODS, byol, moco_v2, moco_v3, simclr, simsiam
from dovetail.schedules import Moment, value_at
from dovetail.train.learner import Learner
from dovetail.train.optimisers import build_optimiser, rule_names, set_hyperparameters
from tests.tiny import BATCH, make_views, tiny_learner

CNN = {
    "c4": Tap(12, 16, "map", "encoder"),
    "c5": Tap(20, 32, "map", "encoder"),
    "p2": Tap(6, 4, "map", "decoder"),
}
VIT = {
    "patches": Tap(20, 16, "tokens", "encoder"),
    "cls": Tap(20, 16, "vector", "encoder"),
    "c4": Tap(20, 16, "map", "encoder"),
}
TEACHERS = {"moco-v2", "moco-v3", "byol"}
START, END = Moment(0, 100, 10), Moment(100, 100, 10)


def small(name: str, taps: dict[str, Tap]) -> Recipe:
    options: dict[str, Any] = {"queue": 16} if name == "moco-v2" else {}
    return METHODS[name](taps, hidden=8, dim=4, **options)


@pytest.mark.parametrize("name", METHODS)
def test_sits_on_the_deepest_map_or_the_class_token(name: str) -> None:
    for taps, tap in ((CNN, "c5"), (VIT, "cls")):
        recipe = small(name, taps)
        recipe.check(taps)
        assert recipe.name == name
        assert [term.tap for term in recipe.terms] == [tap]
        assert [view.role for view in recipe.views.views] == ["global", "global"]
        assert recipe.export == "student"


@pytest.mark.parametrize("name", METHODS)
def test_has_a_teacher_only_where_the_method_has(name: str) -> None:
    assert (small(name, CNN).teacher_momentum is not None) is (name in TEACHERS)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("tap", [CNN["p2"], CNN["c5"], VIT["cls"]], ids=["decoder map", "encoder map", "vector"])
def test_head_and_objective_fit_any_tap(name: str, tap: Tap) -> None:
    (term,) = small(name, CNN).terms
    assert not isinstance(term.head, SameHead)
    head, teacher, objective = (
        term.head.build(tap.channels),
        term.head.build(tap.channels),
        term.objective.build(term.head),
    )
    shape = (5, tap.channels) if tap.kind == "vector" else (5, tap.channels, 3, 2)
    values = [torch.randn(shape) for _ in range(2)]
    with torch.no_grad():
        targets = [teacher(value) for value in values]
    objective([head(value) for value in values], targets, [], START).total.backward()
    for module in (head, objective):
        assert isinstance(module, nn.Module)
        assert all(parameter.grad is not None for parameter in module.parameters())


def test_teacher_momenta_are_the_papers() -> None:
    for recipe, start, end in ((moco_v2(CNN), 0.999, 0.999), (moco_v3(CNN), 0.99, 1.0), (byol(CNN), 0.996, 1.0)):
        assert recipe.teacher_momentum is not None
        assert value_at(recipe.teacher_momentum, START) == pytest.approx(start)
        assert value_at(recipe.teacher_momentum, END) == pytest.approx(end)


def test_moco_v3_has_a_recipe_for_each_kind_of_encoder() -> None:
    cnn, vit = moco_v3(CNN), moco_v3(VIT)
    assert (cnn.optimiser.name, vit.optimiser.name) == ("lars", "adamw")
    temperatures, last_norms = [], []
    for recipe in (cnn, vit):
        objective = recipe.terms[0].objective
        assert isinstance(objective, KeyContrastSpec)
        assert objective.predictor is not None
        temperatures.append(objective.temperature)
        last_norms.append(objective.predictor.last_norm)
    assert temperatures == [1.0, 0.2]
    assert last_norms == ["none", "plain"]
    assert moco_v3(VIT, temperature=0.5, base_lr=1.0).optimiser.base_lr == 1.0


def rates(learner: Learner, moment: Moment) -> dict[str, tuple[float, float]]:
    """Return (learning rate over its peak, weight decay) of every parameter at a moment."""
    named = rule_names(learner)
    spec = learner.recipe.optimiser
    optimiser = build_optimiser(named, spec)
    set_hyperparameters(optimiser, spec, 1.0, moment)
    found = {id(p): (group["lr"], group["weight_decay"]) for group in optimiser.param_groups for p in group["params"]}
    return {name: found[id(parameter)] for name, parameter in named.items()}


def test_the_patch_embedding_of_moco_v3_stands_still() -> None:
    learner = tiny_learner("moco-v3", model="timm/test_vit")
    late = rates(learner, Moment(50, 100, 1))
    still = {name for name, (rate, _) in late.items() if rate == 0}
    assert still
    assert all("patch_embed" in name for name in still)
    free = rates(tiny_learner("moco-v3", model="timm/test_vit", frozen_patches=False), Moment(50, 100, 1))
    assert all(rate > 0 for rate, _ in free.values())


def test_the_predictor_of_simsiam_keeps_its_rate() -> None:
    late = rates(tiny_learner("simsiam"), Moment(90, 100, 10))
    predictor = {rate for name, (rate, _) in late.items() if "predictor" in name}
    others = {rate for name, (rate, _) in late.items() if "predictor" not in name}
    assert predictor == {1.0}
    assert max(others) < 0.1


@pytest.mark.parametrize("name", ["simclr", "moco-v3", "byol", "barlow", "zerocl", "vicreg"])
def test_lars_leaves_one_dimensional_parameters_undecayed_and_unadapted(name: str) -> None:
    learner = tiny_learner(name)
    named = rule_names(learner)
    optimiser = build_optimiser(named, learner.recipe.optimiser)
    for group in optimiser.param_groups:
        thin = {parameter.ndim == 1 for parameter in group["params"]}
        assert thin == {not group["adapt"]} == {not group["decay"]}


@pytest.mark.parametrize("name", ["barlow", "zerocl"])
def test_biases_have_a_rate_of_their_own(name: str) -> None:
    learner = tiny_learner(name, base_lr=0.2, bias_lr=0.01)
    moment = Moment(50, 100, 1)
    found = rates(learner, moment)
    shapes = {parameter_name: parameter.ndim for parameter_name, parameter in rule_names(learner).items()}
    thin = {rate for parameter_name, (rate, _) in found.items() if shapes[parameter_name] == 1}
    wide = {rate for parameter_name, (rate, _) in found.items() if shapes[parameter_name] != 1}
    assert thin.pop() / wide.pop() == pytest.approx(0.05)
    assert not thin | wide


def test_options_reach_their_objectives() -> None:
    queue = moco_v2(CNN, queue=32, symmetric=True, temperature=0.3).terms[0].objective
    assert queue == QueueContrastSpec(0.3, 32, True)
    regress = simsiam(CNN, predictor_hidden=5).terms[0].objective
    assert isinstance(regress, RegressSpec)
    assert regress.targets == "student"
    assert simclr(CNN, jitter=0.5).views.views[0].photometric.brightness == pytest.approx(0.4)
    assert moco_v2(CNN).shuffle_batch_norm


@pytest.mark.parametrize("name", METHODS)
def test_learns_a_batch(name: str) -> None:
    """A few steps on one batch bring the loss down."""
    learner = tiny_learner(name)
    optimiser = torch.optim.Adam((p for p in learner.parameters() if p.requires_grad), lr=3e-3)
    views = make_views(learner.recipe.views, batch=2 * BATCH)
    losses = []
    for _ in range(12):
        loss = learner(views, START).total
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        learner.move_teacher(Moment(0, 100, 10))
        losses.append(float(loss.detach()))
    assert min(losses[-3:]) < losses[0]
