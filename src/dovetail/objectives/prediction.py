"""Feature prediction: the student's map of one view predicts the teacher's features of another view, cell by cell.

z_i is the prediction for cell i of the teacher's view, from the student's map at the centre of that cell. y_i are the
teacher's features there, standardised per channel with running mean and variance:

    loss = mean over cells i inside of the student's view of 1 - cos(z_i, y_i)

The map is sampled bilinearly. Cells whose centre is outside of the student's view are excluded from the mean. If there
are none inside, the loss is a zero that keeps the graph. Standardisation gives all channels the same weight; otherwise
the few channels with the largest values would dominate the cosine.

The predictor has no copy in the teacher, so it belongs to the objective. It does not process the teacher's features,
which get no gradient. `update` updates the running mean and variance over all ranks; the first batch uses its own.

Shapes: B images, C channels of the student's map, D of the teacher's features, H x W cells of the student's map,
N = h x w cells of the teacher's features.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dovetail.distributed import mean_over_rows
from dovetail.errors import OptionsError, RecipeError
from dovetail.heads.base import HeadSpec, at_least_float32, mlp
from dovetail.heads.masked_mlp import statistics
from dovetail.heads.raw import RawHeadSpec
from dovetail.objectives.objective import Loss, Objective, ObjectiveSpec
from dovetail.schedules import Moment
from dovetail.views.points import centres_of_cells, places, sample
from dovetail.views.view import View

EPSILON = 1e-5


@dataclass(frozen=True)
class FeaturePredictionSpec(ObjectiveSpec):
    """Prediction of the teacher's features from the student's map.

    Attributes:
        channels: Number of channels of the student's map.
        target_channels: Number of channels of the teacher's features.
        hidden: Width of the predictor's hidden layer, with BatchNorm and ReLU; 0 uses a single 1x1 convolution.
        statistics_momentum: Momentum of the running mean and variance, in [0, 1).

    Example:
        >>> import torch
        >>> from dovetail.heads.raw import RawHeadSpec
        >>> from dovetail.views.view import View
        >>> loss = FeaturePredictionSpec(channels=6, target_channels=12).build(RawHeadSpec())
        >>> student, teacher = [torch.randn(2, 6, 8, 8)], [torch.randn(2, 12, 4, 4)]
        >>> total = loss(student, teacher, 2 * [View.of(torch.zeros(2, 3, 32, 32))]).total
    """

    channels: int
    target_channels: int
    hidden: int = 0
    statistics_momentum: float = 0.9

    def __post_init__(self) -> None:
        if not 0 <= self.statistics_momentum < 1:
            raise OptionsError(
                f"statistics_momentum is {self.statistics_momentum:g}; it must be at least 0 and below 1."
            )

    def build(self, head: HeadSpec) -> FeaturePrediction:
        if not isinstance(head, RawHeadSpec):
            raise RecipeError(f"Feature prediction needs a RawHeadSpec, but the term has {head}; replace it.")
        return FeaturePrediction(self)


class FeaturePrediction(Objective):
    """See the module's docstring. In the term's views, those of the student come before those of the teacher."""

    mean: Tensor
    variance: Tensor
    updates: Tensor

    def __init__(self, spec: FeaturePredictionSpec) -> None:
        super().__init__()
        self.spec = spec
        hidden = [spec.hidden] if spec.hidden else []
        self.predictor = mlp([spec.channels, *hidden, spec.target_channels], on_maps=True)
        self.register_buffer("mean", torch.zeros(spec.target_channels))
        self.register_buffer("variance", torch.ones(spec.target_channels))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], views: Sequence[View], moment: Moment
    ) -> Loss:
        seen, target_views = views[: len(student)], views[len(student) :]
        if not teacher or len(target_views) != len(teacher):
            raise RecipeError("Feature prediction needs views of the teacher; set a target for the recipe's term.")
        targets = [as_map(features, view) for features, view in zip(teacher, target_views, strict=True)]
        mean, variance = self.scale_of(targets)
        losses, counts = [], []
        for maps, view in zip(student, seen, strict=True):
            for target, target_view in zip(targets, target_views, strict=True):
                standard = (target - mean[:, None, None]) * torch.rsqrt(variance + EPSILON)[:, None, None]
                points = centres_of_cells(target_view, target.shape[2], target.shape[3])
                where = places(replace(view, points=points))  # [B, N, 2]
                predicted = at_least_float32(self.predictor(sample(maps, where)))  # [B, D, N, 1]
                cosine = F.cosine_similarity(predicted.flatten(2), standard.flatten(2), dim=1)  # [B, N]
                counted = ((where >= 0) & (where <= 1)).all(dim=2).to(cosine.dtype)
                losses.append(((1 - cosine) * counted).sum())
                counts.append(counted.sum())
        total = mean_over_rows(torch.stack(losses).sum(), torch.stack(counts).sum())
        return Loss(total, {"cosine_distance": total})

    @torch.no_grad()
    def scale_of(self, targets: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return mean and variance [D] for standardisation: the running ones, or those of the first batch."""
        mean, variance = measured(targets)
        begun = self.updates > 0
        return torch.where(begun, self.mean, mean), torch.where(begun, self.variance, variance)

    @torch.no_grad()
    def update(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
        mean, variance = measured([as_rows(features) for features in teacher])
        share = torch.where(self.updates > 0, 1 - self.spec.statistics_momentum, 1.0)
        for running, now in ((self.mean, mean), (self.variance, variance)):
            running.lerp_(now.to(running.dtype), share.to(running.dtype))
        self.updates.add_(1)


def measured(targets: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and biased variance [D] of features [B, D, ...] of all views, over all ranks."""
    mean, variance, _ = statistics(torch.cat([features.flatten(2) for features in targets], dim=2))
    return mean, variance


def as_rows(features: Tensor) -> Tensor:
    """Return maps [B, D, h, w] or tokens [B, N, D] as [B, D, N], in float32 at least."""
    return at_least_float32(features.flatten(2) if features.dim() == 4 else features.transpose(1, 2))


def as_map(features: Tensor, view: View) -> Tensor:
    """Return maps [B, D, h, w] or tokens [B, N, D] of a view as maps, in float32 at least."""
    if features.dim() == 4:
        return at_least_float32(features)
    height, width = view.pixels.shape[2:]
    rows = round(math.sqrt(features.shape[1] * height / width))
    as_map: Tensor = as_rows(features).reshape(len(features), features.shape[2], rows, -1)
    return as_map
