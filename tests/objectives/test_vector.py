"""What the image-level objectives share."""

from __future__ import annotations

import pytest
import torch

from dovetail.errors import DovetailError
from dovetail.heads.slots import SlotHeadSpec
from dovetail.heads.vector import VectorHeadSpec
from dovetail.objectives.contrast import KeyContrastSpec, NTXentSpec, QueueContrastSpec
from dovetail.objectives.decorrelate import BarlowSpec, VICRegSpec
from dovetail.objectives.objective import ObjectiveSpec
from dovetail.objectives.regress import RegressSpec
from dovetail.objectives.vector import PredictorSpec, crossed_pairs, unit
from dovetail.objectives.whiten import ZeroCLSpec
from dovetail.schedules import Moment

NOW = Moment(0, 1, 1)
SMALL = PredictorSpec(hidden=6)
SPECS: dict[str, ObjectiveSpec] = {
    "nt-xent": NTXentSpec(),
    "key contrast": KeyContrastSpec(predictor=SMALL),
    "queue contrast": QueueContrastSpec(queue=7),
    "symmetric queue contrast": QueueContrastSpec(queue=7, symmetric=True),
    "byol": RegressSpec(predictor=SMALL),
    "simsiam": RegressSpec("student", "negative_cosine", SMALL),
    "barlow": BarlowSpec(),
    "vicreg": VICRegSpec(),
    "zerocl": ZeroCLSpec(),
}
SYMMETRIC = [name for name in SPECS if name != "queue contrast"]
HEAD = VectorHeadSpec(dim=8)


def views(batch: int = 5) -> list[torch.Tensor]:
    """Two views' outputs that are alike, as those of one image are."""
    base = torch.randn(batch, 8, dtype=torch.float64)
    return [base + 0.5 * torch.randn_like(base) for _ in range(2)]


@pytest.mark.parametrize("name", SPECS)
def test_the_order_of_images_does_not_matter(name: str) -> None:
    objective = SPECS[name].build(HEAD).double()
    student, teacher, order = views(), views(), torch.randperm(5)
    loss = objective(student, teacher, [], NOW).total
    permuted = objective([view[order] for view in student], [view[order] for view in teacher], [], NOW).total
    torch.testing.assert_close(permuted, loss)


@pytest.mark.parametrize("name", SYMMETRIC)
def test_views_can_be_swapped(name: str) -> None:
    objective = SPECS[name].build(HEAD).double()
    if name == "symmetric queue contrast":
        first, second = (queue for queue in objective.get_submodule("queues").children())
        second.load_state_dict(first.state_dict())
    student, teacher = views(), views()
    loss = objective(student, teacher, [], NOW).total
    torch.testing.assert_close(objective(student[::-1], teacher[::-1], [], NOW).total, loss)


@pytest.mark.parametrize("name", SPECS)
def test_saved_and_loaded_the_next_loss_is_the_same_to_the_bit(name: str) -> None:
    objective = SPECS[name].build(HEAD).double()
    for _ in range(3):
        student, teacher = views(), views()
        objective(student, teacher, [], NOW)
        objective.update(student, teacher)
    again = SPECS[name].build(HEAD).double()
    again.load_state_dict(objective.state_dict())
    student, teacher = views(), views()
    assert objective(student, teacher, [], NOW).total.equal(again(student, teacher, [], NOW).total)


@pytest.mark.parametrize("name", SPECS)
def test_the_loss_is_float32_under_autocast(name: str) -> None:
    objective = SPECS[name].build(HEAD)
    student, teacher = ([view.bfloat16() for view in views()] for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(student, teacher, [], NOW)
    assert loss.total.dtype == torch.float32
    if not list(objective.parameters()):  # a predictor runs in half precision, the loss behind it does not
        exact = objective([view.float() for view in student], [view.float() for view in teacher], [], NOW)
        torch.testing.assert_close(loss.total, exact.total, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", SPECS)
def test_parts_carry_no_gradient(name: str) -> None:
    student = [view.requires_grad_() for view in views()]
    loss = SPECS[name].build(HEAD).double()(student, views(), [], NOW)
    assert loss.total.requires_grad
    assert loss.parts
    assert not any(part.requires_grad for part in loss.parts.values())


@pytest.mark.parametrize("name", SPECS)
def test_a_head_that_makes_no_vectors_is_refused(name: str) -> None:
    with pytest.raises(DovetailError, match="SlotHeadSpec does not output"):
        SPECS[name].build(SlotHeadSpec())


@pytest.mark.parametrize("name", SPECS)
def test_one_view_is_refused(name: str) -> None:
    with pytest.raises(DovetailError, match="views"):
        SPECS[name].build(HEAD).double()(views()[:1], views()[:1], [], NOW)


@pytest.mark.parametrize("name", ["key contrast", "queue contrast", "byol"])
def test_a_missing_teacher_is_refused(name: str) -> None:
    with pytest.raises(DovetailError, match="teacher_momentum"):
        SPECS[name].build(HEAD).double()(views(), [], [], NOW)


def test_pairs_are_of_different_views() -> None:
    assert crossed_pairs(2, 2) == [(0, 1), (1, 0)]
    assert crossed_pairs(1, 3) == [(0, 1), (0, 2)]


def test_unit_vectors_of_half_precision_are_float32() -> None:
    made = unit(torch.randn(3, 8).half())
    assert made.dtype == torch.float32
    torch.testing.assert_close(made.norm(dim=1), torch.ones(3))
