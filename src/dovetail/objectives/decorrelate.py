"""Agreement of two views with decorrelated channels: Barlow Twins and VICReg.

Barlow Twins, arXiv 2103.03230, equations 1 and 2; VICReg, arXiv 2105.04906, section 4 and algorithm 1.

On several ranks, statistics cover the whole batch: the embeddings are gathered with gradients.
Cost: one [D, D] matrix for Barlow Twins, two for VICReg (256 MiB each in float32 at D = 8192).

Shapes: B images of this rank, N of all ranks, D channels of the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dovetail.distributed import gather_with_gradient
from dovetail.heads.base import HeadSpec, at_least_float32, full_precision
from dovetail.objectives.objective import Loss, Objective, ObjectiveSpec
from dovetail.objectives.vector import require_views, vector_dim
from dovetail.schedules import Moment
from dovetail.views.view import View


@dataclass(frozen=True)
class BarlowSpec(ObjectiveSpec):
    """Barlow Twins' loss.

    Attributes:
        off_diagonal_weight: Weight lambda of the off-diagonal terms; 0.0051 in the paper, 0.005 in lightly and
            solo-learn.
        loss_scale: Factor of the loss; 1 in the paper and lightly, 0.024 or 0.1 in solo-learn.
        eps: Constant added to the variance of a channel.

    Example:
        >>> import torch
        >>> from dovetail.heads.vector import VectorHeadSpec
        >>> loss = BarlowSpec().build(VectorHeadSpec(dim=8))
        >>> one = torch.randn(16, 8)
        >>> bool(loss([one, one]).total < loss([one, torch.randn(16, 8)]).total)
        True
    """

    off_diagonal_weight: float = 0.0051
    loss_scale: float = 1.0
    eps: float = 1e-5

    def build(self, head: HeadSpec) -> Barlow:
        """Return the objective for a head that outputs vectors."""
        vector_dim(head, "barlow")
        return Barlow(self)


class Barlow(Objective):
    """loss_scale (sum_i (C_ii - 1)^2 + lambda sum_i!=j C_ij^2), C the cross-correlation of two views.

    Parts: `diagonal` and `off_diagonal`, the two sums without factors.
    """

    def __init__(self, spec: BarlowSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], views: Sequence[View], moment: Moment
    ) -> Loss:
        require_views(student, "barlow", exactly=2)
        with full_precision(student[0]):
            first, second = (gather_with_gradient(at_least_float32(view)) for view in student)
            correlation = cross_correlation(first, second, eps=self.spec.eps)
            diagonal = (correlation.diagonal() - 1).square().sum()
            off_diagonal = off_diagonal_of(correlation).square().sum()
            total = self.spec.loss_scale * (diagonal + self.spec.off_diagonal_weight * off_diagonal)
        return Loss(total, {"diagonal": diagonal.detach(), "off_diagonal": off_diagonal.detach()})


@dataclass(frozen=True)
class VICRegSpec(ObjectiveSpec):
    """VICReg's loss.

    Attributes:
        invariance_weight: Weight of the mean squared difference of the views.
        variance_weight: Weight of the hinge loss on each channel's standard deviation.
        covariance_weight: Weight of the squared covariances of different channels.
        variance_scale: Factor of the variance terms' sum over both views: 1 in the paper and solo-learn, 0.5 (the mean)
            in the official code and lightly. The covariance term is the sum over both views in all of them.
        eps: Constant added to the variance inside the root.

    Example:
        >>> import torch
        >>> from dovetail.heads.vector import VectorHeadSpec
        >>> loss = VICRegSpec().build(VectorHeadSpec(dim=8))
        >>> one = torch.randn(16, 8)
        >>> bool(loss([one, one]).total < loss([one, torch.randn(16, 8)]).total)
        True
    """

    invariance_weight: float = 25.0
    variance_weight: float = 25.0
    covariance_weight: float = 1.0
    variance_scale: float = 1.0
    eps: float = 1e-4

    def build(self, head: HeadSpec) -> VICReg:
        """Return the objective for a head that outputs vectors."""
        vector_dim(head, "vicreg")
        return VICReg(self)


class VICReg(Objective):
    """Weighted sum of invariance, variance and covariance, which are also its parts, without their weights.

    invariance: mean over images and channels of (z1 - z2)^2. variance: sum over views of
    mean_d max(0, 1 - sqrt(var_d + eps)), times `variance_scale`. covariance: sum over views of
    sum_i!=j cov_ij^2 / D. Variances and covariances are unbiased.
    """

    def __init__(self, spec: VICRegSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], views: Sequence[View], moment: Moment
    ) -> Loss:
        require_views(student, "vicreg", exactly=2)
        spec = self.spec
        with full_precision(student[0]):
            both = [gather_with_gradient(at_least_float32(view)) for view in student]
            invariance = (both[0] - both[1]).square().mean()
            variance = spec.variance_scale * (variance_hinge(both[0], spec.eps) + variance_hinge(both[1], spec.eps))
            covariance = covariance_penalty(both[0]) + covariance_penalty(both[1])
            total = (
                spec.invariance_weight * invariance
                + spec.variance_weight * variance
                + spec.covariance_weight * covariance
            )
        parts = {"invariance": invariance, "variance": variance, "covariance": covariance}
        return Loss(total, {name: value.detach() for name, value in parts.items()})


def cross_correlation(first: Tensor, second: Tensor, *, eps: float = 1e-5) -> Tensor:
    """Return C [D, D] of two views [N, D]: channels standardised over the batch with the biased variance."""
    standardised = []
    for view in (first, second):
        variance, mean = torch.var_mean(view, dim=0, correction=0)
        standardised.append((view - mean) * torch.rsqrt(variance + eps))
    return standardised[0].T @ standardised[1] / len(first)


def variance_hinge(view: Tensor, eps: float) -> Tensor:
    """Return the mean over channels of max(0, 1 - sqrt(var + eps)) of a view [N, D]."""
    return torch.relu(1 - torch.sqrt(view.var(dim=0) + eps)).mean()


def covariance_penalty(view: Tensor) -> Tensor:
    """Return the sum of squared covariances of different channels of a view [N, D], over D."""
    centred = view - view.mean(dim=0)
    covariance = centred.T @ centred / (len(view) - 1)
    return off_diagonal_of(covariance).square().sum() / view.shape[1]


def off_diagonal_of(square: Tensor) -> Tensor:
    """Return the entries off the diagonal of [D, D] as [D - 1, D], without a copy.

    After the first entry, every (D + 1)-th entry is on the diagonal: the last of each row of D + 1.
    """
    size = len(square)
    return square.flatten()[1:].view(size - 1, size + 1)[:, :-1]
