"""Perceptrons over rows of which only some count: the others change nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from dovetail.heads.base import mlp
from dovetail.heads.masked_mlp import through_rows

YES, NO = torch.tensor(True), torch.tensor(False)


@pytest.fixture
def layers() -> nn.Sequential:
    torch.manual_seed(0)
    layers = mlp((4, 7, 5, 3), activation="gelu", last_norm="affine").double()
    for norm in batch_norms(layers):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return layers


def batch_norms(layers: nn.Module) -> list[nn.BatchNorm1d]:
    return [part for part in layers.modules() if isinstance(part, nn.BatchNorm1d)]


def some_rows(count: int, *, junk: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return 12 rows [12, 4], and which `count` of them count; the others hold something large."""
    counts = torch.zeros(12, dtype=torch.bool)
    counts[torch.randperm(12, generator=torch.Generator().manual_seed(count))[:count]] = True
    rows = torch.randn(12, 4, generator=torch.Generator().manual_seed(3)).double()
    return torch.where(counts[:, None], rows, junk * rows), counts


@pytest.mark.parametrize("count", [2, 5, 12])
def test_rows_that_count_go_through_as_if_they_were_alone(layers: nn.Sequential, count: int) -> None:
    rows, counts = some_rows(count, junk=1000)
    alone, plain = rows[counts].clone().requires_grad_(), copy.deepcopy(layers)
    together = rows.clone().requires_grad_()
    expected = plain(alone)
    found = through_rows(layers, together, counts, YES)[counts]
    torch.testing.assert_close(found, expected)
    for output in (expected, found):
        (output * torch.arange(1.0, 4.0)).square().sum().backward()
    torch.testing.assert_close(together.grad[counts], alone.grad)
    assert not together.grad[~counts].any()
    for one, other in zip(layers.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(layers.state_dict()[name], value, msg=name)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_rows_are_finite_and_move_no_statistics(layers: nn.Sequential, count: int) -> None:
    rows, counts = some_rows(count)
    before = copy.deepcopy(layers.state_dict())
    output = through_rows(layers, rows.requires_grad_(), counts, NO)
    (output * NO).sum().backward()
    assert torch.isfinite(output[counts]).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in layers.parameters())
    for name, value in before.items():
        assert torch.equal(layers.state_dict()[name], value), name


def test_a_plain_mean_over_batches_is_kept_as_such(layers: nn.Sequential) -> None:
    plain = copy.deepcopy(layers)
    for norm in (*batch_norms(layers), *batch_norms(plain)):
        norm.momentum = None
    for seed in (4, 6, 9):
        rows, counts = some_rows(seed)
        through_rows(layers, rows, counts, YES)
        plain(rows[counts])
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(layers.state_dict()[name], value, msg=name)


def test_in_evaluation_the_running_statistics_hold(layers: nn.Sequential) -> None:
    rows, counts = some_rows(5)
    layers.eval()
    torch.testing.assert_close(through_rows(layers, rows, counts, YES), layers(rows))


def test_half_precision_keeps_statistics_in_float32(layers: nn.Sequential) -> None:
    layers = layers.float()
    rows, counts = some_rows(8)
    plain = copy.deepcopy(layers)
    with torch.autocast("cpu", torch.bfloat16):
        found = through_rows(layers, rows.float(), counts, YES)
        expected = plain(rows.float()[counts])
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found[counts], expected, rtol=0.02, atol=0.02)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(layers.state_dict()[name], value, rtol=0.01, atol=0.01, msg=name)
