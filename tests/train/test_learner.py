"""The learner beyond the matrix of methods: one EMA, shared heads, recomputed heads, pooling, the reference flags."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from dovetail.errors import DovetailError
from dovetail.networks.build import build_network
from dovetail.recipe import SameHead
from dovetail.schedules import Moment
from dovetail.train.cells import pool_to_grid
from dovetail.train.learner import Learner
from dovetail.train.recompute import recomputed
from dovetail.train.teacher import average_into
from tests.tiny import CNN, START, make_views, tiny_learner, tiny_recipe


def test_average_into_is_the_textbook_mean() -> None:
    target, source = [torch.randn(3, 4), torch.randn(5)], [torch.randn(3, 4), torch.randn(5)]
    expected = [0.9 * a + 0.1 * b for a, b in zip(target, source, strict=True)]
    average_into(target, source, 0.9)
    torch.testing.assert_close(target, expected)


def test_pooling_keeps_small_maps_and_averages_large_ones() -> None:
    value = torch.randn(2, 3, 8, 6)
    assert pool_to_grid(value, None) is value
    assert pool_to_grid(value, 8) is value
    assert pool_to_grid(value, 4).shape == (2, 3, 4, 4)
    torch.testing.assert_close(pool_to_grid(value, 4).mean((2, 3)), value.mean((2, 3)), rtol=0.2, atol=0.2)
    tokens = torch.randn(2, 100, 3)
    assert pool_to_grid(tokens, 4) is tokens


def test_a_recomputed_head_gives_the_same_numbers_and_statistics() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    other = copy.deepcopy(plain)
    value = torch.randn(2, 3, 5, 5)
    plain(value).square().sum().backward()
    recomputed(other)(value).square().sum().backward()
    for one, two in zip(plain.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one.grad, two.grad)
    for one, two in zip(plain.buffers(), other.buffers(), strict=True):
        assert torch.equal(one, two)


def test_heads_recomputed_or_not_the_loss_is_the_same() -> None:
    learner = tiny_learner("decon-sl", decoder_grid=16)
    assert any(term.checkpoint_head for term in learner.recipe.terms)
    kept = copy.deepcopy(learner)
    kept.recipe = kept.student.recipe = learner.recipe.with_terms(
        *(replace(term, checkpoint_head=False) for term in learner.recipe.terms)
    )
    views = make_views(learner.recipe.views)
    for one in (learner, kept):
        one(views, START).total.backward()
    for (name, a), b in zip(learner.named_parameters(), kept.parameters(), strict=True):
        if a.requires_grad:
            torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_one_pass_per_size_equals_one_per_view_without_batch_statistics() -> None:
    learner = tiny_learner("slotcon").eval()
    views = make_views(learner.recipe.views)
    apart = learner(views, START).total
    together = copy.deepcopy(learner.student)
    together.recipe = replace(learner.recipe, forward_views="per_size")
    joint, single = together(views)["encoder"], learner.student(views)["encoder"]
    assert torch.isfinite(apart)
    for one, two in zip(joint, single, strict=True):
        torch.testing.assert_close(one.scores, two.scores, rtol=1e-4, atol=1e-5)


def test_batch_statistics_see_both_views_together_per_size() -> None:
    learner = tiny_learner("slotcon").train()
    views = make_views(learner.recipe.views)
    together = copy.deepcopy(learner.student)
    together.recipe = replace(learner.recipe, forward_views="per_size")
    joint, single = together(views)["encoder"], learner.student(views)["encoder"]
    assert not torch.allclose(joint[0].scores, single[0].scores, atol=1e-4)


@pytest.mark.parametrize("rule", ["own", "copied", "averaged"])
def test_teacher_buffers_follow_the_rule(rule: str) -> None:
    torch.manual_seed(0)
    network = build_network(CNN, image_size=64)
    learner = Learner(replace(tiny_recipe("slotcon", network.taps), teacher_buffers=rule), network)
    assert learner.teacher is not None
    for value in learner.student.buffers():
        if value.is_floating_point():
            value.add_(1.0)
    before = [value.clone() for value in learner.teacher.buffers()]
    learner.move_teacher(Moment(50, 100, 10))
    momentum = learner.momentum(Moment(50, 100, 10))
    for was, now, source in zip(before, learner.teacher.buffers(), learner.student.buffers(), strict=True):
        if was.is_floating_point():
            wanted = {"own": was, "copied": source, "averaged": momentum * was + (1 - momentum) * source}[rule]
            torch.testing.assert_close(now, wanted)


def test_a_term_on_a_tap_of_the_wrong_kind_gets_a_sentence() -> None:
    network = build_network("timm/test_vit", image_size=64)
    recipe = tiny_recipe("slotcon", {"c4": network.taps["c4"]})
    wrong = recipe.with_terms(replace(recipe.terms[0], tap="cls"))
    with pytest.raises(DovetailError, match="'encoder' needs a map, but cls is a vector"):
        Learner(wrong, network)
    with pytest.raises(DovetailError, match="needs the tap 'p9'"):
        Learner(recipe.with_terms(replace(recipe.terms[0], tap="p9")), network)


def test_a_shared_head_is_one_module() -> None:
    network = build_network(CNN, image_size=64)
    recipe = tiny_recipe("slotcon", network.taps)
    first = recipe.terms[0]
    shared = recipe.with_terms(first, replace(first, name="again", head=SameHead("encoder")))
    learner = Learner(shared, network)
    assert list(learner.student.heads) == ["encoder"]
    outputs = learner.student(make_views(recipe.views))
    assert torch.equal(outputs["again"][0].scores, outputs["encoder"][0].scores)


def test_dropout_on_laterals_changes_the_loss_with_the_seed_only() -> None:
    learner = tiny_learner("decon-ml")
    views = make_views(learner.recipe.views)
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(float(copy.deepcopy(learner)(views, START).total.detach()))
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.parametrize("method", ["moco-v2", "densecl", "decon-sl-densecl"])
def test_one_way_methods_compute_one_view_in_each_branch_and_the_loss_stays(method: str) -> None:
    learner = tiny_learner(method)
    assert learner.recipe.one_way
    views = make_views(learner.recipe.views)
    whole = copy.deepcopy(learner)
    assert whole.teacher is not None
    student, teacher = whole.student(views), whole.teacher(views)
    expected = sum(
        term.weight * whole.objectives[term.name](student[term.name], teacher[term.name], views, START).total
        for term in whole.recipe.terms
    )
    seen: list[int] = []
    assert learner.teacher is not None
    for branch in (learner.student, learner.teacher):
        branch.network.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0].pixels)))
    torch.testing.assert_close(learner(views, START).total, torch.as_tensor(expected))
    assert seen == [len(views[0].pixels)] * 2


@pytest.mark.parametrize("method", ["slotcon", "byol", "dino", "adclr-dino"])
def test_other_methods_see_all_views_in_both_branches(method: str) -> None:
    assert not tiny_learner(method).recipe.one_way


def test_both_ways_of_moco_are_not_one_way() -> None:
    assert not tiny_learner("moco-v2", symmetric=True).recipe.one_way


def test_the_student_skips_views_that_no_term_reads() -> None:
    learner = tiny_learner("dino+decon-sl-densecl", alpha=0.0)
    views = make_views(learner.recipe.views)
    assert {view.role for view in views} == {"global", "local"}
    sizes: list[int] = []
    network = learner.student.network
    handle = network.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].pixels.shape[-1]))
    loss = learner(views, START).total
    handle.remove()
    assert set(sizes) == {64}
    loss.backward()


def test_maps_are_computed_in_the_order_of_the_terms_whatever_the_hashes_of_their_names() -> None:
    learner = tiny_learner("decon-ml-pixpro")
    (view, _) = make_views(learner.recipe.views)
    levels = [term.tap for term in learner.recipe.terms]
    assert len(levels) > 4
    assert learner.student.needed(view) == levels
    assert list(learner.student.network(view, learner.student.needed(view))) == levels
