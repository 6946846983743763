"""ADCLR over DINO and iBOT: its laws as a recipe transformer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from dovetail.errors import DovetailError
from dovetail.networks.vit import build_vit
from dovetail.objectives.distill import DistillObjective
from dovetail.recipe import Recipe, Tap
from dovetail.recipes.query_terms import adclr
from dovetail.recipes.tokens import dino, ibot, selfpatch
from dovetail.train.learner import Learner
from dovetail.views.view import View
from tests.networks.vits import UNKNOWN_BLOCKS, tiny_vit
from tests.recipes.test_tokens import SMALL, one_step
from tests.tiny import START, make_views

BASES: dict[str, Callable[[dict[str, Tap]], Recipe]] = {
    "dino": lambda taps: dino(taps, **SMALL),
    "ibot": lambda taps: ibot(taps, **SMALL),
    "ibot_separate": lambda taps: ibot(taps, shared_head=False, patch_prototypes=7, **SMALL),
}
over_all_bases = pytest.mark.parametrize("base", BASES)


def pair(base: str, **options: Any) -> tuple[Learner, Learner]:
    """Return learners of the base and of ADCLR over it, with the same weights, in training with stochastic depth."""
    torch.manual_seed(0)
    network = build_vit(tiny_vit(drop_path_rate=0.3))
    recipe = BASES[base](network.taps)
    torch.manual_seed(1)
    plain = Learner(recipe, copy.deepcopy(network)).train()
    torch.manual_seed(1)
    queried = Learner(adclr(recipe, network.taps, **{"queries": 3} | options), network).train()
    return plain, queried


def views_with_and_without_queries(queried: Learner, seed: int = 0) -> tuple[list[View], list[View]]:
    """Return the same views for both learners."""
    views = make_views(queried.recipe.views, seed=seed)
    return [replace(view, queries=None, query_box=None) for view in views], views


def loss_of(learner: Learner, views: list[View]) -> torch.Tensor:
    """Return the loss with one draw of stochastic depth."""
    torch.manual_seed(9)
    return learner(views, START).total


@over_all_bases
def test_it_adds_no_parameter(base: str) -> None:
    plain, queried = pair(base)
    names = [
        {name: tuple(parameter.shape) for name, parameter in learner.named_parameters() if parameter.requires_grad}
        for learner in (plain, queried)
    ]
    assert names[0] == names[1]


@over_all_bases
@pytest.mark.parametrize("attention", ["unidirectional", "query_to_query"])
def test_weight_zero_is_the_base_to_the_last_bit(base: str, attention: Any) -> None:
    plain, queried = pair(base, query_weight=0.0, query_attention=attention, query_positions="crop")
    for step in range(2):
        without, views = views_with_and_without_queries(queried, seed=step)
        losses = loss_of(plain, without), loss_of(queried, views)
        assert torch.equal(*losses)
        gradients = []
        for learner, loss in zip((plain, queried), losses, strict=True):
            for parameter in learner.parameters():
                parameter.grad = None
            loss.backward()
            gradients.append({name: p.grad for name, p in learner.named_parameters() if p.grad is not None})
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=0)
        for learner in (plain, queried):
            learner.update()


@over_all_bases
def test_the_bases_own_parts_are_what_they_were(base: str) -> None:
    plain, queried = pair(base)
    without, views = views_with_and_without_queries(queried)
    torch.manual_seed(9)
    expected = plain(without, START).parts
    torch.manual_seed(9)
    parts = queried(views, START).parts
    assert set(parts) - set(expected) == {"queries/cross_entropy", "queries/loss"}
    assert all(torch.equal(parts[name], value) for name, value in expected.items())


def test_the_loss_is_the_base_and_the_weighted_query_term() -> None:
    _, queried = pair("dino", query_weight=0.7)
    _, views = views_with_and_without_queries(queried)
    loss = queried(views, START)
    torch.testing.assert_close(loss.total, loss.parts["cls/loss"] + 0.7 * loss.parts["queries/loss"])


def test_queries_have_a_centre_of_their_own() -> None:
    _, queried = pair("dino", query_centre_momentum=0.5)
    _, views = views_with_and_without_queries(queried)
    queried(views, START)
    targets = queried.teacher_outputs(views)
    queried.update()
    for name, share in (("cls", 0.1), ("queries", 0.5)):
        objective = queried.objectives[name]
        assert isinstance(objective, DistillObjective)
        mean = torch.cat([value.flatten(0, -2) for value in targets[name]]).mean(0)
        torch.testing.assert_close(objective.centre, share * mean)


def test_queries_share_the_class_tokens_head_and_not_the_patches() -> None:
    _, queried = pair("ibot_separate")
    _, views = views_with_and_without_queries(queried)
    outputs = queried.student(views)
    assert outputs["queries"][0].shape == (4, 3, 12)
    assert outputs["patches"][0].shape[-1] == 7
    tokens = queried.student.eval().network(views[0], ["queries"])["queries"]
    torch.testing.assert_close(queried.student(views)["queries"][0], queried.student.heads["cls"](tokens))


@over_all_bases
def test_saved_and_loaded_the_next_loss_is_bit_equal(base: str) -> None:
    (_, queried), (_, restored) = pair(base), pair(base)
    one_step(queried)
    restored.load_state_dict(copy.deepcopy(queried.state_dict()))
    _, views = views_with_and_without_queries(queried, seed=2)
    assert torch.equal(loss_of(queried, views), loss_of(restored, views))


def test_pairing_chooses_the_other_view_or_the_same() -> None:
    _, cross = pair("dino")
    _, same = pair("dino", query_pairing="same")
    _, views = views_with_and_without_queries(cross)
    for learner in (cross, same):
        learner.student.eval()
    student, teacher = cross.student(views)["queries"], cross.teacher_outputs(views)["queries"]
    made = [learner(views, START).parts["queries/loss"] for learner in (cross, same)]

    def entropy(u: int, v: int) -> torch.Tensor:
        target = torch.softmax(teacher[u] / 0.04, dim=-1)
        return -(target * torch.log_softmax(student[v] / 0.1, dim=-1)).sum(-1).mean()

    torch.testing.assert_close(made[0], (entropy(0, 1) + entropy(1, 0)) / 2)
    torch.testing.assert_close(made[1], (entropy(0, 0) + entropy(1, 1)) / 2)


def test_bidirectional_attention_changes_the_bases_part() -> None:
    plain, queried = pair("dino", query_attention="bidirectional", query_weight=0.0)
    without, views = views_with_and_without_queries(queried)
    assert not torch.allclose(loss_of(plain, without), loss_of(queried, views))


def test_the_rule_reaches_both_branches() -> None:
    _, queried = pair("dino", query_attention="query_to_query", query_positions="crop")
    assert queried.teacher is not None
    for branch in (queried.student, queried.teacher):
        assert branch.network.rules.query_rule == queried.recipe.query_rule
        assert branch.network.rules.query_rule.attention == "query_to_query"
        assert branch.network.rules.query_rule.positions == "crop"


def test_queries_are_one_patch_of_this_model() -> None:
    recipe = pair("dino", queries=5, query_scale=(0.1, 0.2), independent_queries=True)[1].recipe
    assert recipe.name == "adclr-dino"
    assert recipe.views.queries is not None
    assert (recipe.views.queries.size_px, recipe.views.queries.count) == (8, 5)
    assert recipe.views.queries.scale == (0.1, 0.2)
    assert recipe.views.queries.independent


def test_local_views_carry_no_queries() -> None:
    _, queried = pair("dino")
    _, views = views_with_and_without_queries(queried)
    assert [view.queries is not None for view in views] == [True, True, False, False]
    assert len(queried.student(views)["queries"]) == 2


def test_mistakes_are_told() -> None:
    taps = build_vit(tiny_vit()).taps
    with pytest.raises(DovetailError, match="queries is 0; it must be at least 1"):
        adclr(dino(taps, **SMALL), taps, queries=0)
    with pytest.raises(DovetailError, match="'selfpatch' has none"):
        adclr(selfpatch(taps, head_channels=16, **SMALL), taps)
    without = build_vit(UNKNOWN_BLOCKS()).taps
    with pytest.raises(DovetailError, match="ViT that supports query tokens, but the model has only cls, patches"):
        adclr(dino(without, **SMALL), without)


def test_queries_are_blurred_as_asked() -> None:
    taps = build_vit(tiny_vit()).taps
    default = adclr(dino(taps), taps).views.queries
    assert default is not None
    assert (default.photometric.blur_p, default.photometric.blur_sigma_px) == (0.5, (0.1, 2.0))
    sharp = adclr(dino(taps), taps, query_blur_px=0.0).views.queries
    assert sharp is not None
    assert sharp.photometric.blur_p == 0
    little = adclr(dino(taps), taps, query_blur_px=0.3).views.queries
    assert little is not None
    assert little.photometric.blur_sigma_px == (0.1, 0.3)


def test_queries_of_several_tokens_train() -> None:
    plain, queried = pair("ibot", query_tokens_per_side=2, query_positions="crop")
    assert queried.recipe.views.queries is not None
    patch = queried.student.network.taps["queries"].stride
    assert queried.recipe.views.queries.size_px == 2 * patch
    without, views = views_with_and_without_queries(queried)
    torch.manual_seed(9)
    expected = plain(without, START).parts
    torch.manual_seed(9)
    loss = queried(views, START)
    assert all(torch.equal(loss.parts[name], value) for name, value in expected.items())
    loss.total.backward()
    assert torch.isfinite(loss.parts["queries/loss"])
    with pytest.raises(DovetailError, match="query_tokens_per_side is 0"):
        pair("dino", query_tokens_per_side=0)
