from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

from dovetail.errors import DovetailError
from dovetail.heads.dense import DenseHeadSpec, DenseOutput, PixelHeadSpec
from dovetail.objectives.dense import DenseContrast, DenseContrastSpec, correspondences, info_nce, take_cells
from dovetail.objectives.objective import Loss
from dovetail.schedules import Moment

NOW = Moment(0, 1, 1)


def objective(**settings: Any) -> DenseContrast:
    torch.manual_seed(1)
    return DenseContrastSpec(queue=12, **settings).build(DenseHeadSpec(hidden=6, dim=5))


def output(batch: int = 3, height: int = 3, width: int = 4, *, gradient: bool = False) -> DenseOutput:
    cells = F.normalize(torch.randn(batch, 5, height, width), dim=1).requires_grad_(gradient)
    embedding = F.normalize(torch.randn(batch, 5), dim=1).requires_grad_(gradient)
    pooled = F.normalize(torch.randn(batch, 5), dim=1)
    return DenseOutput(embedding, cells, pooled, torch.randn(batch, 7, height, width))


def loss_of(module: DenseContrast, query: DenseOutput, key: DenseOutput) -> Loss:
    return module([query, output()], [output(), key], [], NOW)


def permuted(value: DenseOutput, order: Tensor) -> DenseOutput:
    return DenseOutput(*(part[order] for part in value))


def test_matches_undo_a_shuffle_of_the_cells() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 7, 12)
    orders = torch.stack([torch.randperm(12), torch.randperm(12)])
    shuffled = torch.stack([one[:, order] for one, order in zip(features, orders, strict=True)])
    # Cosine, not dot product: cells of the key differ in length.
    shuffled = shuffled * torch.rand(2, 1, 12).add(0.1)
    index = correspondences(features.view(2, 7, 3, 4), shuffled.view(2, 7, 2, 6))
    assert torch.equal(index, orders.argsort(dim=1))


def test_matches_computed_in_pieces_are_the_same() -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 7, 3, 5), torch.randn(2, 7, 4, 4)
    assert torch.equal(correspondences(query, key, at_once=70), correspondences(query, key))


def test_dense_positive_is_the_key_cell_matched_by_the_tap() -> None:
    """With the query's cells equal to the matched key cells, only the queue keeps the dense loss above zero."""
    torch.manual_seed(0)
    key = output()
    order = torch.randperm(12)
    features = key.features.flatten(2)[:, :, order].view_as(key.features)
    cells = key.cells.flatten(2)[:, :, order].view_as(key.cells)
    query = DenseOutput(key.embedding, cells, key.pooled, features)
    module = objective(temperature=0.01)
    # Orthogonal to every cell, so that logits of negatives are zero.
    module.queue_dense.vectors.zero_()
    assert float(loss_of(module, query, key).parts["dense"]) < 1e-6
    unmatched = query._replace(features=key.features)
    assert float(loss_of(module, unmatched, key).parts["dense"]) > 0.1


def test_cells_are_taken_in_row_order() -> None:
    cells = torch.arange(6.0).view(1, 1, 2, 3)
    assert take_cells(cells, torch.tensor([[4, 0, 4]])).flatten().tolist() == [4, 0, 4]


def test_info_nce_is_cross_entropy_with_the_positive_first() -> None:
    torch.manual_seed(0)
    query, positive, negatives = torch.randn(6, 5), torch.randn(6, 5), torch.randn(5, 9)
    logits = torch.cat([(query * positive).sum(1, keepdim=True), query @ negatives], dim=1) / 0.3
    expected = F.cross_entropy(logits, torch.zeros(6, dtype=torch.int64))
    assert_close(info_nce(query, positive, negatives, temperature=0.3, at_once=1000), expected)


def test_info_nce_in_pieces_has_the_same_value_and_gradient() -> None:
    torch.manual_seed(0)
    positive, negatives = torch.randn(7, 5), torch.randn(5, 9)
    values, gradients = [], []
    for at_once in (1000, 20):
        query = torch.linspace(-1, 1, 35).view(7, 5).requires_grad_()
        value = info_nce(query, positive, negatives, temperature=0.3, at_once=at_once)
        value.backward()
        values.append(value.detach())
        gradients.append(query.grad)
    assert_close(values[0], values[1])
    assert_close(gradients[0], gradients[1])


def test_only_the_first_view_is_query_and_only_the_second_key() -> None:
    torch.manual_seed(0)
    module, query, key = objective(), output(gradient=True), output()
    loss = module([query, output()], [output(), key], [], NOW).total
    assert torch.equal(loss, module([query, output()], [output(), key], [], NOW).total)
    assert not torch.equal(loss, module([query, key], [key, query], [], NOW).total)
    before = module.queue_global.vectors.clone()
    module.update([query, output()], [output(), key])
    assert_close(module.queue_global.vectors[:, :3], key.embedding.T)
    assert_close(module.queue_dense.vectors[:, :3], key.pooled.T)
    assert torch.equal(module.queue_global.vectors[:, 3:], before[:, 3:])


def test_forward_changes_no_state() -> None:
    module = objective()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    loss_of(module, output(), output())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_order_of_the_batch_does_not_matter() -> None:
    torch.manual_seed(0)
    module, query, key = objective(), output(), output()
    order = torch.tensor([2, 0, 1])
    assert_close(loss_of(module, permuted(query, order), permuted(key, order)).total, loss_of(module, query, key).total)
    assert not torch.allclose(loss_of(module, query, permuted(key, order)).total, loss_of(module, query, key).total)


def test_gradient_reaches_the_student_alone() -> None:
    torch.manual_seed(0)
    query, key = output(gradient=True), output(gradient=True)
    loss_of(objective(), query, key).total.backward()
    assert key.embedding.grad is None
    assert key.cells.grad is None
    for value in (query.embedding, query.cells):
        assert value.grad is not None
        assert float(value.grad.abs().min(dim=1).values.min()) > 0


@pytest.mark.parametrize(("weight", "part"), [(0.0, "global"), (1.0, "dense")])
def test_weight_shares_the_loss_between_its_parts(weight: float, part: str) -> None:
    torch.manual_seed(0)
    query, key = output(), output()
    loss = loss_of(objective(dense_weight=weight), query, key)
    assert torch.equal(loss.total, loss.parts[part])
    quarter = loss_of(objective(dense_weight=0.25), query, key)
    assert_close(quarter.total, 0.75 * loss.parts["global"] + 0.25 * loss.parts["dense"])


def test_after_save_and_load_the_next_loss_is_bit_equal() -> None:
    torch.manual_seed(0)
    module, query, key = objective(), output(), output()
    module.update([query, query], [key, key])
    other = objective()
    other.load_state_dict(module.state_dict())
    for each in (module, other):
        each.update([query, query], [output(), permuted(key, torch.tensor([1, 2, 0]))])
    assert torch.equal(loss_of(module, query, key).total, loss_of(other, query, key).total)
    assert not torch.equal(loss_of(objective(), query, key).total, loss_of(module, query, key).total)


def test_maps_of_two_sizes_can_be_compared() -> None:
    torch.manual_seed(0)
    loss = loss_of(objective(), output(height=2, width=5), output(height=4, width=3))
    assert bool(torch.isfinite(loss.total))


def test_loss_is_float32_and_exact_under_autocast() -> None:
    torch.manual_seed(0)
    module, query, key = objective(), output(gradient=True), output()
    exact = loss_of(module, query, key).total
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loss_of(module, query, key).total
    assert loss.dtype == torch.float32
    assert torch.equal(loss, exact)


def test_wrong_settings_are_refused_with_a_sentence() -> None:
    with pytest.raises(DovetailError, match="dense_weight is 2"):
        DenseContrastSpec(dense_weight=2)
    with pytest.raises(DovetailError, match="temperature is 0"):
        DenseContrastSpec(temperature=0)
    with pytest.raises(DovetailError, match="DenseHeadSpec"):
        DenseContrastSpec().build(PixelHeadSpec())


def test_other_than_two_views_are_refused() -> None:
    with pytest.raises(DovetailError, match="the student has 3, the teacher 1"):
        objective()([output()] * 3, [output()], [], NOW)
