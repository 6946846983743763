"""The image-level losses against those of lightly, written by others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dovetail.heads.vector import VectorHeadSpec
from dovetail.objectives.contrast import NTXentSpec, QueueContrastSpec
from dovetail.objectives.decorrelate import BarlowSpec, VICRegSpec
from dovetail.objectives.objective import Objective
from dovetail.objectives.regress import RegressSpec
from dovetail.schedules import Moment

lightly = pytest.importorskip("lightly.loss", reason="needs the extra `bench`")

NOW = Moment(0, 1, 1)
HEAD = VectorHeadSpec(dim=8)


def pair(batch: int = 6) -> list[Tensor]:
    return [torch.randn(batch, 8, dtype=torch.float64, requires_grad=True) for _ in range(2)]


def agree(objective: Objective, theirs: Tensor, student: list[Tensor], teacher: list[Tensor]) -> None:
    """Compare loss and gradients."""
    ours = objective(student, teacher, [], NOW).total
    torch.testing.assert_close(ours, theirs)
    made, wanted = (torch.autograd.grad(loss, student, materialize_grads=True) for loss in (ours, theirs))
    torch.testing.assert_close(made, wanted)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent(temperature: float) -> None:
    views = pair()
    theirs = lightly.NTXentLoss(temperature=temperature)(*views)
    agree(NTXentSpec(temperature, rows_per_block=5).build(HEAD), theirs, views, [])


def test_nt_xent_with_a_memory_bank() -> None:
    loss = lightly.NTXentLoss(temperature=0.2, memory_bank_size=(16, 8))
    objective = QueueContrastSpec(0.2, 16, reference_dropped_surplus=True).build(HEAD).double()
    loss.memory_bank.bank = loss.memory_bank.bank.double()
    for _ in range(4):  # the third batch reaches the end
        objective.load_state_dict(
            {"queues.0.vectors": loss.memory_bank.bank.T, "queues.0.pointer": loss.memory_bank.bank_ptr}
        )
        student, teacher = pair(), [key.detach() for key in pair()]
        agree(objective, loss(student[0], teacher[1]), student, teacher)
        objective.update(student, teacher)
        queue = objective.queue_of_view()[0][1]
        torch.testing.assert_close(queue.vectors.T, loss.memory_bank.bank)
        assert queue.pointer.equal(loss.memory_bank.bank_ptr)


def test_negative_cosine_both_ways() -> None:
    loss, student, teacher = lightly.NegativeCosineSimilarity(), pair(), [key.detach() for key in pair()]
    theirs = 0.5 * (loss(student[0], teacher[1]) + loss(student[1], teacher[0]))
    agree(RegressSpec(convention="negative_cosine", predictor=None).build(HEAD), theirs, student, teacher)


def test_barlow_twins() -> None:
    views = pair()
    agree(BarlowSpec(5e-3).build(HEAD), lightly.BarlowTwinsLoss(lambda_param=5e-3)(*views), views, [])


@pytest.mark.parametrize("spread", [0.1, 3.0])
def test_vicreg_with_its_variance_halved(spread: float) -> None:
    views = [(spread * view).detach().requires_grad_() for view in pair()]
    agree(VICRegSpec(variance_scale=0.5).build(HEAD), lightly.VICRegLoss()(*views), views, [])
