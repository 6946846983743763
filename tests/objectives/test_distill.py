"""DINO's objective: pairs, centre, gradient; ADCLR's query term as the same objective on tokens."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dovetail.errors import DovetailError
from dovetail.heads.prototypes import PrototypeHeadSpec
from dovetail.heads.slots import SlotHeadSpec
from dovetail.objectives.distill import DistillObjective, DistillSpec, Pairing, cross_entropy
from dovetail.schedules import LinearByEpoch, Moment
from dovetail.views.view import View
from tests.golden.check_dino import views_of

HEAD = PrototypeHeadSpec(prototypes=6)
START = Moment(0, 100, 10)
BATCH = 4


def objective(*, pairing: Pairing = "cross", momentum: float = 0.9) -> DistillObjective:
    """Return the objective in float64 with a centre away from zero."""
    made = DistillSpec(teacher_temperature=0.05, pairing=pairing, centre_momentum=momentum).build(HEAD).double()
    made.centre.copy_(torch.linspace(-0.1, 0.2, 6))
    return made


def logits(count: int, *shape: int, seed: int = 0) -> list[Tensor]:
    """Return logits [B, *shape, 6] of views."""
    generator = torch.Generator().manual_seed(seed)
    return list(torch.randn(count, BATCH, *shape, 6, generator=generator, dtype=torch.float64))


def by_loops(student: list[Tensor], teacher: list[Tensor], centre: Tensor, pairs: list[tuple[int, int]]) -> float:
    """Return the mean over pairs (teacher, student) and rows, one number at a time."""
    total = []
    for u, v in pairs:
        for target, guess in zip(teacher[u].reshape(-1, 6), student[v].reshape(-1, 6), strict=True):
            weights = [math.exp((t - c) / 0.05) for t, c in zip(target.tolist(), centre.tolist(), strict=True)]
            normal = math.log(sum(math.exp(s / 0.1) for s in guess.tolist()))
            total.append(
                -sum(w / sum(weights) * (s / 0.1 - normal) for w, s in zip(weights, guess.tolist(), strict=True))
            )
    return sum(total) / len(total)


def test_crosses_global_targets_with_all_other_views() -> None:
    student, teacher, made = logits(5), logits(2, seed=1), objective()
    pairs = [(u, v) for u in range(2) for v in range(5) if u != v]
    expected = by_loops(student, teacher, made.centre, pairs)
    assert float(made(student, teacher, views_of(BATCH, 3), START).total) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("pairing", "pairs"), [("cross", [(0, 1), (1, 0)]), ("same", [(0, 0), (1, 1)])])
def test_on_queries_it_is_the_mean_over_queries_and_both_directions(
    pairing: Pairing, pairs: list[tuple[int, int]]
) -> None:
    student, teacher, made = logits(2, 3), logits(2, 3, seed=1), objective(pairing=pairing)
    expected = by_loops(student, teacher, made.centre, pairs)
    assert float(made(student, teacher, views_of(BATCH, 0), START).total) == pytest.approx(expected, rel=1e-12)


def test_local_views_of_a_teacher_are_no_targets() -> None:
    student, teacher, made = logits(4), logits(4, seed=1), objective()
    seen = views_of(BATCH, 2)
    assert torch.equal(made(student, teacher, seen, START).total, made(student, teacher[:2], seen, START).total)


def test_the_centre_moves_by_all_rows_after_the_loss() -> None:
    student, teacher, made = logits(3), logits(2, seed=1), objective(momentum=0.8)
    before = made.centre.clone()
    made(student, teacher, views_of(BATCH, 1), START)
    assert torch.equal(made.centre, before)
    made.update(student, teacher)
    torch.testing.assert_close(made.centre, 0.8 * before + 0.2 * torch.cat(teacher).mean(0))


def test_the_gradient_is_the_difference_of_distributions() -> None:
    student, teacher, made = logits(2), logits(2, seed=1), objective()
    student = [one.requires_grad_() for one in student]
    made(student, teacher, views_of(BATCH, 0), START).total.backward()
    target = torch.softmax((teacher[1] - made.centre) / 0.05, dim=1)
    expected = (torch.softmax(student[0] / 0.1, dim=1) - target) / 0.1 / (2 * BATCH)
    torch.testing.assert_close(student[0].grad, expected.detach())


def test_the_temperature_follows_its_schedule() -> None:
    spec = DistillSpec(teacher_temperature=LinearByEpoch(0.04, 0.07, 4))
    student, teacher, seen = logits(2), logits(2, seed=1), views_of(BATCH, 0)
    for epoch, temperature in enumerate((0.04, 0.05, 0.06, 0.07, 0.07)):
        scheduled = spec.build(HEAD)(student, teacher, seen, Moment(epoch, 10, 1)).total
        constant = replace(spec, teacher_temperature=temperature).build(HEAD)(student, teacher, seen, START).total
        torch.testing.assert_close(scheduled, constant)


def test_it_is_saved_whole() -> None:
    student, teacher, seen = logits(2), logits(2, seed=1), views_of(BATCH, 0)
    made = objective()
    made.update(student, teacher)
    restored = objective()
    restored.load_state_dict(made.state_dict())
    assert torch.equal(restored(student, teacher, seen, START).total, made(student, teacher, seen, START).total)


def test_mistakes_are_told() -> None:
    with pytest.raises(DovetailError, match="needs a prototype head, got SlotHeadSpec"):
        DistillSpec().build(SlotHeadSpec())
    lonely: list[View] = views_of(BATCH, 0)[:1]
    with pytest.raises(DovetailError, match=r"1 view\(s\) have no cross-view pair"):
        objective()(logits(1), logits(1), lonely, START)


def test_the_cross_entropy_is_the_one_of_log_softmax_and_so_is_its_gradient() -> None:
    target, guess = logits(2, 3)[0].abs(), logits(1, 3, seed=1)[0].requires_grad_()  # targets of any sum
    made, expected = cross_entropy(target, guess, 0.1), -(target * torch.log_softmax(guess / 0.1, dim=-1)).sum(-1)
    torch.testing.assert_close(made, expected)
    cotangent = torch.randn(made.shape, dtype=made.dtype)
    gradients = [torch.autograd.grad((value * cotangent).sum(), guess)[0] for value in (made, expected)]
    torch.testing.assert_close(*gradients)


def test_the_cross_entropy_of_sharp_logits_is_finite() -> None:
    guess = torch.tensor([[60.0, -60.0], [1e4, 0.0]], requires_grad=True)
    cross_entropy(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), guess, 0.1).sum().backward()
    assert guess.grad is not None
    assert torch.isfinite(guess.grad).all()
