"""ZeroCL's whitening."""

from __future__ import annotations

import pytest
import torch

from dovetail.errors import DovetailError
from dovetail.heads.vector import VectorHeadSpec
from dovetail.objectives.whiten import ZeroCLSpec, standardise, whiten, whitening_matrix
from dovetail.schedules import Moment

NOW = Moment(0, 1, 1)


@pytest.mark.parametrize(("count", "features"), [(9, 4), (4, 9), (5, 5)])
def test_both_forms_are_the_product_with_the_constant_matrix(count: int, features: int) -> None:
    samples = torch.randn(count, features, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(count, features, dtype=torch.float64)
    plain = samples @ whitening_matrix(samples.detach(), eps=0.01)
    made = whiten(samples, eps=0.01)
    torch.testing.assert_close(made, plain)
    gradients = [torch.autograd.grad((value * weights).sum(), samples)[0] for value in (made, plain)]
    torch.testing.assert_close(*gradients)


def test_whitened_features_are_uncorrelated() -> None:
    samples = torch.randn(200, 4, dtype=torch.float64) @ torch.randn(4, 4, dtype=torch.float64)
    whitened = whiten(standardise(samples, eps=0.0), eps=1e-9)
    torch.testing.assert_close(whitened.T @ whitened / 200, torch.eye(4, dtype=torch.float64), atol=1e-6, rtol=0)


def test_whitening_a_wide_head_in_float32_is_close_to_float64() -> None:
    samples = standardise(torch.randn(16, 64, dtype=torch.float64), eps=1e-4)
    exact = whiten(samples, eps=0.01)
    error = (whiten(samples.float(), eps=0.01).double() - exact).abs().max() / exact.abs().max()
    assert error < 1e-4  # of the largest value, as float32 rounds sums of values of that size


def test_standardised_features_have_mean_zero_and_deviation_one() -> None:
    made = standardise(3 * torch.randn(50, 4, dtype=torch.float64) + 7, eps=0.0)
    torch.testing.assert_close(made.mean(dim=0), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(made.std(dim=0), torch.ones(4, dtype=torch.float64))


def test_both_is_the_sum_of_the_modes() -> None:
    views = [torch.randn(7, 5, dtype=torch.float64) for _ in range(2)]
    head = VectorHeadSpec(dim=5)
    feature = ZeroCLSpec("feature").build(head)(views, [], [], NOW)
    instance = ZeroCLSpec("instance").build(head)(views, [], [], NOW)
    both = ZeroCLSpec().build(head)(views, [], [], NOW)
    torch.testing.assert_close(both.total, feature.total + instance.total)
    assert set(both.parts) == {"feature", "instance"}
    assert not torch.isclose(feature.total, instance.total)


def test_equal_views_have_less_loss_than_unrelated_ones() -> None:
    view, other = (torch.randn(40, 5, dtype=torch.float64) for _ in range(2))
    objective = ZeroCLSpec("feature").build(VectorHeadSpec(dim=5))
    assert objective([view, view], [], [], NOW).total < 0.1 * objective([view, other], [], [], NOW).total


def test_whitening_needs_a_floor() -> None:
    with pytest.raises(DovetailError, match="above 0"):
        ZeroCLSpec(whitening_eps=0.0)
