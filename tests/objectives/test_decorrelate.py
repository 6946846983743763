"""Barlow Twins and VICReg."""

from __future__ import annotations

import pytest
import torch

from dovetail.errors import DovetailError
from dovetail.heads.vector import VectorHeadSpec
from dovetail.objectives.decorrelate import BarlowSpec, VICRegSpec, cross_correlation, off_diagonal_of
from dovetail.schedules import Moment

NOW = Moment(0, 1, 1)
HEAD = VectorHeadSpec(dim=6)


def views(batch: int = 9) -> list[torch.Tensor]:
    return [torch.randn(batch, 6, dtype=torch.float64, requires_grad=True) for _ in range(2)]


@pytest.mark.parametrize("size", [1, 2, 5])
def test_off_diagonal_entries_are_all_but_the_diagonal(size: int) -> None:
    square = torch.arange(size * size, dtype=torch.float64).view(size, size)
    expected = square[~torch.eye(size, dtype=torch.bool)]
    assert off_diagonal_of(square).flatten().sort().values.equal(expected.sort().values)


def test_cross_correlation_of_equal_views_has_ones_on_its_diagonal() -> None:
    view = views(50)[0]
    correlation = cross_correlation(view, view, eps=0.0)
    torch.testing.assert_close(correlation.diagonal(), torch.ones(6, dtype=torch.float64))
    torch.testing.assert_close(correlation, torch.corrcoef(view.T))


def test_barlow_weighs_its_parts() -> None:
    loss = BarlowSpec(0.3, 2.0).build(HEAD)(views(), [], [], NOW)
    torch.testing.assert_close(loss.total, 2.0 * (loss.parts["diagonal"] + 0.3 * loss.parts["off_diagonal"]))


def test_barlow_does_not_see_scale_and_shift() -> None:
    first, second = views()
    objective = BarlowSpec(eps=0.0).build(HEAD)
    moved = objective([first * 3 + 1, second * 0.1 - 2], [], [], NOW).total
    torch.testing.assert_close(moved, objective([first, second], [], [], NOW).total)


def test_vicreg_weighs_its_parts() -> None:
    loss = VICRegSpec(2.0, 3.0, 5.0).build(HEAD)(views(), [], [], NOW)
    parts = loss.parts
    total = 2 * parts["invariance"] + 3 * parts["variance"] + 5 * parts["covariance"]
    torch.testing.assert_close(loss.total, total)


def test_vicreg_s_conventions_differ_in_the_variance_alone() -> None:
    both = views()
    paper = VICRegSpec().build(HEAD)(both, [], [], NOW).parts
    code = VICRegSpec(variance_scale=0.5).build(HEAD)(both, [], [], NOW).parts
    torch.testing.assert_close(code["variance"], paper["variance"] / 2)
    assert code["covariance"].equal(paper["covariance"])
    assert code["invariance"].equal(paper["invariance"])


def test_vicreg_is_zero_for_equal_views_that_are_spread_and_uncorrelated() -> None:
    basis = torch.linalg.qr(torch.cat([torch.ones(32, 1), torch.randn(32, 6)], dim=1).double()).Q[:, 1:]
    view = basis * 32  # mean 0, orthogonal channels, deviation above 1
    total = VICRegSpec().build(HEAD)([view, view], [], [], NOW).total
    torch.testing.assert_close(total, torch.zeros((), dtype=torch.float64), atol=1e-9, rtol=0)


def test_a_collapsed_view_pushes_its_variance_up() -> None:
    view = (1e-3 * torch.randn(9, 6, dtype=torch.float64)).requires_grad_()
    objective = VICRegSpec(covariance_weight=0.0).build(HEAD)
    (gradient,) = torch.autograd.grad(objective([view, view], [], [], NOW).total, view)
    wider = view.detach() - 1e-2 * gradient
    assert (wider.std(dim=0) > view.detach().std(dim=0)).all()


@pytest.mark.parametrize("spec", [BarlowSpec(), VICRegSpec()])
def test_three_views_are_refused(spec: BarlowSpec | VICRegSpec) -> None:
    with pytest.raises(DovetailError, match="needs 2 views, got 3"):
        spec.build(HEAD)([*views(), views()[0]], [], [], NOW)
