"""Regression of one view's target from the other, without negatives: BYOL and SimSiam.

BYOL, arXiv 2006.07733, equation 2: || unit(p) - unit(t) ||^2 = 2 - 2 cos(p, t), summed over both directions, t the
teacher's projection. SimSiam, arXiv 2011.10566, equations 1 and 2: -(cos(p1, sg z2) + cos(p2, sg z1)) / 2, z the
student's own projection without gradient.

The predictor processes one view at a time, so its BatchNorm statistics cover one view.

Shapes: B images, D channels of the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from dovetail.heads.base import HeadSpec, full_precision
from dovetail.objectives.objective import Loss, Objective, ObjectiveSpec
from dovetail.objectives.vector import (
    PredictorSpec,
    crossed_pairs,
    require_teacher,
    require_views,
    unit,
    vector_dim,
)
from dovetail.schedules import Moment
from dovetail.views.view import View

Convention = Literal["squared_distance", "negative_cosine"]


@dataclass(frozen=True)
class RegressSpec(ObjectiveSpec):
    """The loss of BYOL and SimSiam.

    Attributes:
        targets: Projections of the "teacher" (BYOL) or of the "student" without gradient (SimSiam).
        convention: "squared_distance" (BYOL's paper) is the sum over pairs of views of 2 - 2 cos. "negative_cosine"
            (SimSiam's paper; lightly for both) is the mean over pairs of -cos. With two views the first is 4 plus 4
            times the second, so its gradients are 4 times as large.
        predictor: Predictor of the student; None compares the projections directly, which collapses.

    Example:
        >>> import torch
        >>> from dovetail.heads.vector import VectorHeadSpec
        >>> loss = RegressSpec(predictor=None).build(VectorHeadSpec(dim=8))
        >>> one, two = torch.eye(4, 8), -torch.eye(4, 8)
        >>> float(loss([one, one], [one, one]).total), float(loss([one, one], [two, two]).total)
        (0.0, 8.0)
    """

    targets: Literal["teacher", "student"] = "teacher"
    convention: Convention = "squared_distance"
    predictor: PredictorSpec | None = field(default_factory=PredictorSpec)

    def build(self, head: HeadSpec) -> Regress:
        """Return the objective for a head that outputs vectors."""
        return Regress(self, vector_dim(head, "regress"))


class Regress(Objective):
    """Predicts the target of each view from every other view. Part: `cosine`, the mean over pairs, at most 1."""

    def __init__(self, spec: RegressSpec, dim: int) -> None:
        super().__init__()
        self.spec = spec
        self.predictor: nn.Module = nn.Identity() if spec.predictor is None else spec.predictor.build(dim)

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], views: Sequence[View], moment: Moment
    ) -> Loss:
        require_views(student, "regress")
        if self.spec.targets == "teacher":
            require_teacher(teacher, "regress")
        predictions = [self.predictor(projection) for projection in student]
        targets = [target.detach() for target in (teacher if self.spec.targets == "teacher" else student)]
        with full_precision(predictions[0]):
            return regress(predictions, targets, convention=self.spec.convention)


def regress(predictions: Sequence[Tensor], targets: Sequence[Tensor], *, convention: Convention) -> Loss:
    """Return the loss of predictions [B, D] of all views and targets [B, D] of the first views, normalised or not."""
    made = [unit(prediction) for prediction in predictions]
    wanted = [unit(target) for target in targets]
    cosines = torch.stack(
        [(made[v] * wanted[u]).sum(dim=1).mean() for u, v in crossed_pairs(len(targets), len(predictions))]
    )
    total = (2 - 2 * cosines).sum() if convention == "squared_distance" else -cosines.mean()
    return Loss(total, {"cosine": cosines.mean().detach()})
