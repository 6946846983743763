"""ZeroCL: agreement of whitened embeddings, without negatives and without a penalty between channels.

Zero-CL, ICLR 2022, https://openreview.net/forum?id=RAW9tCdVxLj, and the authors' code (ImageNet-100 variant): the
channels of each view are standardised and whitened, and the two views' correlation of each channel is trained towards 1
(feature-wise). The same applies to instances instead of channels (instance-wise). The whitening matrix is a constant
for the gradient. The authors' code trains one of the two at a time; the paper trains their sum, which is the default.

On several ranks, the images of all ranks are whitened together with gradients, so the loss is that of the whole batch.
In the authors' code each rank whitens its own images.

Cost: eigenvalues of one symmetric matrix per view and mode, whose side is the smaller of B and D. With D = 8192 and
B = 256 the [D, D] whitening matrix is never formed. Every rank computes the eigenvalues of the whole batch.

Shapes: B images of all ranks, D channels of the embedding; S samples and F features of the whitened matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dovetail.distributed import gather_with_gradient
from dovetail.errors import OptionsError
from dovetail.heads.base import HeadSpec, at_least_float32, full_precision
from dovetail.objectives.objective import Loss, Objective, ObjectiveSpec
from dovetail.objectives.vector import require_views, vector_dim
from dovetail.schedules import Moment
from dovetail.views.view import View


@dataclass(frozen=True)
class ZeroCLSpec(ObjectiveSpec):
    """ZeroCL's loss.

    Attributes:
        mode: "feature", "instance", or "both" (their sum).
        whitening_eps: Constant added to the eigenvalues of the covariance, above 0, because one mode is rank-deficient.
        std_eps: Constant added to standard deviations, outside the root.

    Example:
        >>> import torch
        >>> from dovetail.heads.vector import VectorHeadSpec
        >>> loss = ZeroCLSpec().build(VectorHeadSpec(dim=4))
        >>> one = torch.randn(16, 4)
        >>> bool(loss([one, one]).total < loss([one, torch.randn(16, 4)]).total)
        True
    """

    mode: Literal["both", "feature", "instance"] = "both"
    whitening_eps: float = 0.01
    std_eps: float = 1e-4

    def __post_init__(self) -> None:
        if not self.whitening_eps > 0:
            raise OptionsError(f"ZeroCL's whitening_eps is {self.whitening_eps:g}; it must be above 0.")

    def build(self, head: HeadSpec) -> ZeroCL:
        """Return the objective for a head that outputs vectors."""
        vector_dim(head, "zerocl")
        return ZeroCL(self)


class ZeroCL(Objective):
    """Sum over features f of ((1 / S) sum_s W1_sf W2_sf - 1)^2, W the whitened views. Parts: `feature`, `instance`."""

    def __init__(self, spec: ZeroCLSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], views: Sequence[View], moment: Moment
    ) -> Loss:
        require_views(student, "zerocl", exactly=2)
        parts: dict[str, Tensor] = {}
        with full_precision(student[0]):
            both = [gather_with_gradient(at_least_float32(view)) for view in student]
            if self.spec.mode != "instance":
                parts["feature"] = self.disagreement(both)
            if self.spec.mode != "feature":
                parts["instance"] = self.disagreement([view.T for view in both])
            total = torch.stack(list(parts.values())).sum()
        return Loss(total, {name: value.detach() for name, value in parts.items()})

    def whitened(self, samples: Tensor) -> Tensor:
        """Return samples [S, F] standardised over S and whitened."""
        return whiten(standardise(samples, eps=self.spec.std_eps), eps=self.spec.whitening_eps)

    def disagreement(self, views: Sequence[Tensor]) -> Tensor:
        """Return the sum over features of the squared distance of the views' [S, F] correlation from 1."""
        first, second = (self.whitened(view) for view in views)
        return ((first * second).mean(dim=0) - 1).square().sum()


def standardise(samples: Tensor, *, eps: float) -> Tensor:
    """Return samples [S, F] with mean 0 and unbiased standard deviation 1 per feature, up to `eps` after the root."""
    return (samples - samples.mean(dim=0)) / (samples.std(dim=0) + eps)


@torch.no_grad()
def whitening_matrix(samples: Tensor, *, eps: float) -> Tensor:
    """Return the symmetric M = (Y^T Y / S + eps I)^(-1/2) [F, F] of samples Y [S, F]."""
    wide = in_double(samples)
    values, vectors = torch.linalg.eigh(wide.T @ wide / len(samples))
    matrix: Tensor = (vectors * (values.clamp(min=0) + eps).rsqrt()) @ vectors.T
    return matrix.to(samples)


def in_double(value: Tensor) -> Tensor:
    """Return a value in float64; values on Apple's GPU, which has no float64, are moved to the CPU."""
    return value.cpu().double() if value.device.type == "mps" else value.double()


def whiten(samples: Tensor, *, eps: float) -> Tensor:
    """Return Y M of samples Y [S, F], with M of `whitening_matrix` as a constant.

    With fewer samples than features, M = eps^(-1/2) I - Y^T A Y for a matrix A [S, S] with the eigenvectors of
    Y Y^T / S, so that M itself is not formed.
    """
    count, features = samples.shape
    if features <= count:
        return samples @ whitening_matrix(samples, eps=eps)
    constant = samples.detach()
    wide = in_double(constant)
    values, vectors = torch.linalg.eigh(wide @ wide.T / count)
    root, floor = (values.clamp(min=0) + eps).sqrt(), eps**0.5
    # (floor^-1 - root^-1) / (S value), in a form that is also correct for a value of 0.
    inner: Tensor = (vectors / (count * floor * root * (root + floor))) @ vectors.T  # A
    within: Tensor = ((samples @ constant.T) @ inner.to(samples)) @ constant
    whitened: Tensor = samples / floor - within
    return whitened
