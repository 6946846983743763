"""Contrast in blocks, queues, and over ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dovetail.errors import DovetailError
from dovetail.heads.vector import VectorHeadSpec
from dovetail.objectives.contrast import KeyContrastSpec, NTXentSpec, QueueContrast, QueueContrastSpec, contrast
from dovetail.objectives.decorrelate import BarlowSpec, VICRegSpec
from dovetail.objectives.objective import Objective, ObjectiveSpec
from dovetail.objectives.regress import RegressSpec
from dovetail.objectives.vector import unit
from dovetail.schedules import Moment

NOW = Moment(0, 1, 1)
HEAD = VectorHeadSpec(dim=6)


def outputs(count: int = 2, batch: int = 5) -> list[Tensor]:
    return [torch.randn(batch, 6, dtype=torch.float64, requires_grad=True) for _ in range(count)]


def value_and_gradients(objective: Objective, student: list[Tensor], teacher: list[Tensor]) -> list[Tensor]:
    loss = objective(student, teacher, [], NOW).total
    return [loss.detach(), *torch.autograd.grad(loss, student, materialize_grads=True)]


@pytest.mark.parametrize("rows", [1, 3, 5, 100])
@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("positives", ["inside", "outside"])
def test_nt_xent_in_blocks_is_the_plain_one(count: int, rows: int, positives: Literal["inside", "outside"]) -> None:
    student = outputs(count)
    plain = value_and_gradients(NTXentSpec(0.2, positives, None).build(HEAD), student, [])
    blocks = value_and_gradients(NTXentSpec(0.2, positives, rows).build(HEAD), student, [])
    torch.testing.assert_close(blocks, plain, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_key_and_queue_contrast_in_blocks_are_the_plain_ones(rows: int) -> None:
    student, teacher = outputs(), outputs()
    specs: list[tuple[ObjectiveSpec, ObjectiveSpec]] = [
        (KeyContrastSpec(0.2, None, None), KeyContrastSpec(0.2, None, rows)),
        (QueueContrastSpec(0.2, 9, True, None), QueueContrastSpec(0.2, 9, True, rows)),
    ]
    for plain_spec, block_spec in specs:
        plain, blocks = plain_spec.build(HEAD).double(), block_spec.build(HEAD).double()
        blocks.load_state_dict(plain.state_dict())
        expected = value_and_gradients(plain, student, teacher)
        torch.testing.assert_close(value_and_gradients(blocks, student, teacher), expected, rtol=1e-12, atol=1e-14)


def test_nt_xent_is_its_definition() -> None:
    first, second = outputs()
    every = unit(torch.cat([first, second]))
    losses = []
    for i in range(10):
        similar = [torch.exp(every[i] @ every[j] / 0.3) for j in range(10)]
        losses.append(-torch.log(similar[(i + 5) % 10] / sum(s for j, s in enumerate(similar) if j != i)))
    torch.testing.assert_close(
        NTXentSpec(0.3).build(HEAD)([first, second], [], [], NOW).total, torch.stack(losses).mean()
    )


def test_positives_inside_and_outside_differ_with_three_views_only() -> None:
    three = outputs(3)
    inside, outside = NTXentSpec(0.3).build(HEAD), NTXentSpec(0.3, "outside").build(HEAD)
    torch.testing.assert_close(inside(three[:2], [], [], NOW).total, outside(three[:2], [], [], NOW).total)
    assert outside(three, [], [], NOW).total > inside(three, [], [], NOW).total + 0.1


def test_positives_outside_are_the_mean_of_each_ones_loss() -> None:
    views = outputs(3)
    rows = torch.nn.functional.normalize(torch.cat(views), dim=1)
    batch, losses = len(views[0]), []
    for anchor in range(len(rows)):
        others = [row for row in range(len(rows)) if row != anchor]
        logits = rows[others] @ rows[anchor] / 0.3
        right = [place for place, row in enumerate(others) if row % batch == anchor % batch]
        losses.append((torch.logsumexp(logits, 0) - logits[right]).mean())
    made = NTXentSpec(0.3, "outside").build(HEAD)(views, [], [], NOW).total
    torch.testing.assert_close(made, torch.stack(losses).mean())


def test_no_pair_matrix_is_kept_for_the_backward_pass() -> None:
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.numel())
        return tensor

    student = outputs(batch=64)
    for rows, kept in ((None, True), (16, False)):
        sizes.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            NTXentSpec(rows_per_block=rows).build(HEAD)(student, [], [], NOW)
        assert (max(sizes) >= 128 * 128) is kept


def test_keys_get_no_gradient() -> None:
    student, teacher = outputs(), outputs()
    for spec in (KeyContrastSpec(predictor=None), QueueContrastSpec(queue=8)):
        loss = spec.build(HEAD).double()(student, teacher, [], NOW).total
        gradients = torch.autograd.grad(loss, teacher, allow_unused=True)
        assert gradients == (None, None)


def filled(queue_length: int, *, dropped: bool = False) -> QueueContrast:
    objective = QueueContrastSpec(queue=queue_length, reference_dropped_surplus=dropped).build(HEAD)
    return objective.double()


def test_the_queue_holds_unit_keys_of_the_second_view_in_order_and_wraps() -> None:
    objective = filled(8)
    batches = [[key.detach() for key in outputs()] for _ in range(3)]
    for batch in batches:
        objective.update([], batch)
    written = unit(torch.cat([batch[1] for batch in batches]))  # 15 keys in 8 places: the last lies at 6
    queue = objective.queue_of_view()[0][1]
    torch.testing.assert_close(queue.vectors.T, torch.cat([written[8:15], written[7:8]]))
    assert int(queue.pointer) == 7


def test_a_batch_longer_than_the_queue_leaves_its_last_keys() -> None:
    objective = filled(3)
    keys = outputs(batch=5)[0].detach()
    objective.update([], [keys, keys])
    queue = objective.queue_of_view()[0][1]
    assert int(queue.pointer) == 5 % 3
    torch.testing.assert_close(queue.vectors.T, unit(keys)[[3, 4, 2]])


def test_the_reference_flag_drops_the_surplus() -> None:
    objective = filled(8, dropped=True)
    first, second = ([key.detach() for key in outputs()] for _ in range(2))
    objective.update([], first)
    objective.update([], second)
    queue = objective.queue_of_view()[0][1]
    assert int(queue.pointer) == 0
    torch.testing.assert_close(queue.vectors.T, torch.cat([unit(first[1]), unit(second[1])[:3]]))


def test_forward_leaves_the_queue_alone() -> None:
    objective = filled(8)
    before = {name: value.clone() for name, value in objective.state_dict().items()}
    objective(outputs(), outputs(), [], NOW)
    assert all(value.equal(before[name]) for name, value in objective.state_dict().items())


def test_key_contrast_has_the_factor_of_its_paper() -> None:
    query, key = outputs()
    loss = KeyContrastSpec(0.5, None).build(HEAD)([query, query], [key, key], [], NOW)
    logits = unit(query) @ unit(key).T / 0.5
    one = nn.functional.cross_entropy(logits, torch.arange(5))
    torch.testing.assert_close(loss.total, 2 * (2 * 0.5) * one)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_must_be_above_zero(temperature: float) -> None:
    for spec in (NTXentSpec, KeyContrastSpec, QueueContrastSpec):
        with pytest.raises(DovetailError, match="above 0"):
            spec(temperature=temperature)


def test_a_block_needs_a_row() -> None:
    with pytest.raises(DovetailError, match="at least 1"):
        NTXentSpec(rows_per_block=0)


def test_contrast_without_excluded_compares_with_all() -> None:
    anchors = unit(outputs()[0])
    positives = torch.arange(5)[:, None]
    everything = contrast(anchors, anchors, positives, temperature=1.0)
    others = contrast(anchors, anchors, positives.flip(0), torch.arange(5), temperature=1.0)
    expected = nn.functional.cross_entropy(anchors @ anchors.T, torch.arange(5))
    torch.testing.assert_close(everything, expected)
    assert not torch.isclose(everything, others)


SPECS_OVER_RANKS: dict[str, ObjectiveSpec] = {
    "nt-xent": NTXentSpec(0.3),
    "nt-xent in blocks": NTXentSpec(0.3, rows_per_block=2),
    "key contrast": KeyContrastSpec(0.3, None, 2),
    "queue contrast": QueueContrastSpec(0.3, 11, True),
    "regress": RegressSpec(predictor=None),
    "barlow": BarlowSpec(),
    "vicreg": VICRegSpec(),
}


def train_step(images: Tensor, others: Tensor) -> dict[str, list[Tensor]]:
    """Losses, gradients of a shared linear map, and the state afterwards, for each objective."""
    torch.manual_seed(0)
    answers: dict[str, list[Tensor]] = {}
    for name, spec in SPECS_OVER_RANKS.items():
        weight = torch.randn(6, 6, dtype=torch.float64, requires_grad=True)
        objective = spec.build(HEAD).double()
        student = [view @ weight for view in images]
        teacher = [view.clone() for view in others]
        loss = objective(student, teacher, [], NOW).total
        loss.backward()
        objective.update(student, teacher)
        assert weight.grad is not None
        answers[name] = [loss.detach(), weight.grad, *[value.double() for value in objective.state_dict().values()]]
    return answers


def on_rank(rank: int, images: Tensor, others: Tensor, folder: str) -> None:
    """Take this rank's images, and average losses and gradients over ranks as distributed training does."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    mine = slice(4 * rank, 4 * rank + 4)
    answers = train_step(images[:, mine], others[:, mine])
    for values in answers.values():
        for value in values[:2]:
            dist.all_reduce(value)
            value /= 2
    if rank == 0:
        torch.save(answers, f"{folder}/answers.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_compute_the_loss_and_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    images, others = torch.randn(2, 2, 8, 6, dtype=torch.float64)
    expected = train_step(images, others)
    torch.multiprocessing.spawn(on_rank, (images, others, str(tmp_path)), nprocs=2)
    made = torch.load(tmp_path / "answers.pt")
    for name, values in expected.items():
        torch.testing.assert_close(made[name], values, msg=lambda text, name=name: f"{name}: {text}")
