"""BYOL's and SimSiam's regression."""

from __future__ import annotations

import pytest
import torch

from dovetail.heads.vector import VectorHeadSpec
from dovetail.objectives.regress import RegressSpec, regress
from dovetail.objectives.vector import PredictorSpec
from dovetail.schedules import Moment

NOW = Moment(0, 1, 1)
HEAD = VectorHeadSpec(dim=6)


def outputs(count: int = 2) -> list[torch.Tensor]:
    return [torch.randn(5, 6, dtype=torch.float64, requires_grad=True) for _ in range(count)]


def test_the_conventions_differ_by_a_factor_of_four() -> None:
    predictions, targets = outputs(), outputs()
    paper = regress(predictions, targets, convention="squared_distance").total
    cosine = regress(predictions, targets, convention="negative_cosine").total
    torch.testing.assert_close(paper, 4 + 4 * cosine)


def test_it_is_the_squared_distance_of_unit_vectors() -> None:
    predictions, targets = outputs(), outputs()
    made, wanted = ([value / value.norm(dim=1, keepdim=True) for value in values] for values in (predictions, targets))
    distance = ((made[0] - wanted[1]).square().sum(1) + (made[1] - wanted[0]).square().sum(1)).mean()
    torch.testing.assert_close(regress(predictions, targets, convention="squared_distance").total, distance)


def test_agreement_is_the_least_loss() -> None:
    same = outputs(1) * 2
    loss = regress(same, same, convention="squared_distance")
    torch.testing.assert_close(loss.total, torch.zeros((), dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(loss.parts["cosine"], torch.ones((), dtype=torch.float64))


def test_every_crop_predicts_every_other_target() -> None:
    predictions, targets = outputs(4), outputs()
    loss = regress(predictions, targets, convention="squared_distance").total
    gradients = torch.autograd.grad(loss, predictions)
    one = regress(predictions[:1] + predictions[1:2], targets, convention="squared_distance").total
    assert all(gradient.abs().sum() > 0 for gradient in gradients)
    assert loss > one  # a sum over pairs


def test_the_student_s_own_targets_stop_the_gradient() -> None:
    spec = RegressSpec("student", "negative_cosine", predictor=PredictorSpec(4))
    objective = spec.build(HEAD).double()
    student = outputs()
    gradients = torch.autograd.grad(objective(student, [], [], NOW).total, student)
    fixed = [value.detach() for value in student]
    predictions = [objective.predictor(value) for value in student]
    expected = torch.autograd.grad(regress(predictions, fixed, convention="negative_cosine").total, student)
    torch.testing.assert_close(gradients, expected)
    through = [objective.predictor(value) for value in student]
    cosine = torch.nn.functional.cosine_similarity
    leaking = -(cosine(through[0], student[1]).mean() + cosine(through[1], student[0]).mean()) / 2
    wrong = torch.autograd.grad(leaking, student)
    assert not torch.allclose(gradients[0], wrong[0])


@pytest.mark.parametrize("targets", ["teacher", "student"])
def test_targets_are_where_the_spec_says(targets: str) -> None:
    spec = RegressSpec("teacher" if targets == "teacher" else "student", predictor=None)
    student, teacher = outputs(), outputs()
    loss = spec.build(HEAD)(student, teacher, [], NOW).total
    expected = regress(student, teacher if targets == "teacher" else student, convention="squared_distance").total
    torch.testing.assert_close(loss, expected)


def test_the_predictor_sees_one_view_at_a_time() -> None:
    objective = RegressSpec(predictor=PredictorSpec(4)).build(HEAD).double()
    student, teacher = outputs(), outputs()
    batches: list[int] = []
    objective.predictor.register_forward_hook(lambda module, inputs, output: batches.append(len(inputs[0])))
    objective(student, teacher, [], NOW)
    assert batches == [5, 5]
