"""PixPro: each cell, smoothed with similar cells, agrees with the other view's cells at the same place (2011.10043).

    y_i  = unit( sum_j max(cos(x_i, x_j), 0)^gamma  unit(g(x_j)) )          propagation, student only    (equation 3)
    loss = - mean_b mean_{(i,j) near} cos(y_i, x'_j), both ways, summed, times 2                          (equation 4)
    near: |centre_i - centre_j| / max(cell diagonals) < distance            in the image's frame    (equation 1)

The propagation g and the instance predictor have no copy in the teacher, so they belong to the objective.

The weights of the propagation are not normalised over j, and g's output is normalised before the sum, as in the
official code. Distances are in the image's [0, 1] frame, where x and y have different units unless it is square.
Images without a pair of near cells add a zero but count in the mean. The mean over near pairs divides by their number
plus 1e-6. The official code adds this in float32, where it has no effect from 32 pairs on; the difference is below 1e-7
of the loss.

Sampled maps (`Cells.points`) have the cells of both views at the same points of the overlap, so each point has at least
one positive pair, itself. Separate points would seldom be near each other on a fine map. Distances are measured between
points in the image's frame, in diagonals of the map's cells. The propagation sums over the points.

Shapes: B images, D of the embedding, H x W = N cells of a map, M cells of the other view's map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dovetail.errors import OptionsError, RecipeError
from dovetail.heads.base import HeadSpec, at_least_float32, full_precision, mlp
from dovetail.heads.dense import PixelHeadSpec, PixelOutput
from dovetail.objectives.objective import Loss, Objective, ObjectiveSpec
from dovetail.schedules import Moment
from dovetail.views.points import places
from dovetail.views.view import View, corners_px

AT_ONCE = 2**24  # number of pairs of cells in memory at a time: 64 MiB of float32


@dataclass(frozen=True)
class PixelConsistencySpec(ObjectiveSpec):
    """PixPro's loss.

    Attributes:
        distance: Maximum distance of positive pairs, as a fraction of the larger cell diagonal.
        gamma: Exponent of the similarities in the propagation, at least 1.
        clamp: Minimum similarity in the propagation, in [0, 1).
        transform_layers: Number of 1x1 convolutions in g, with BatchNorm and ReLU in between; 0 uses the embedding.
        instance_weight: Weight of the image-level term; above 0 the head needs `instance=True`.
        pairs_at_once: Maximum number of pairs of cells to compute at a time. More are computed in blocks, and those of
            the propagation recomputed in the backward pass, with the same result.

    Example:
        >>> import torch
        >>> from dovetail.heads.dense import PixelHeadSpec
        >>> from dovetail.views.view import View
        >>> spec = PixelHeadSpec(hidden=16, dim=8)
        >>> loss, head = PixelConsistencySpec().build(spec), spec.build(12)
        >>> student, teacher = ([head(torch.randn(4, 12, 7, 7)) for _ in range(2)] for _ in range(2))
        >>> total = loss(student, teacher, 2 * [View.of(torch.zeros(4, 3, 56, 56))]).total
    """

    distance: float = 0.7
    gamma: float = 2.0
    clamp: float = 0.0
    transform_layers: int = 1
    instance_weight: float = 0.0
    pairs_at_once: int = AT_ONCE

    def __post_init__(self) -> None:
        if self.gamma < 1:
            raise OptionsError(
                f"PixPro's gamma is {self.gamma}; it must be at least 1, because its gradient is infinite below."
            )
        if not 0 <= self.clamp < 1:
            raise OptionsError(f"PixPro's clamp is {self.clamp}; it must be at least 0 and below 1.")
        if self.instance_weight < 0:
            raise OptionsError(f"PixPro's instance_weight is {self.instance_weight}; it must not be negative.")

    @property
    def points(self) -> Literal["overlap"]:
        """The same points in both views."""
        return "overlap"

    def build(self, head: HeadSpec) -> PixelConsistency:
        if not isinstance(head, PixelHeadSpec):
            raise RecipeError(f"PixPro's loss compares the output of a PixelHeadSpec; the term has {head}.")
        if head.instance != (self.instance_weight > 0):
            raise OptionsError(
                f"PixPro's instance_weight is {self.instance_weight} but the head has instance={head.instance}; "
                "enable or disable both."
            )
        return PixelConsistency(self, head)


class PixelConsistency(Objective):
    """PixPro's loss on the first two views. Parts of the loss: `pixel`, and `instance` if that branch is enabled."""

    needs_views = True

    def __init__(self, spec: PixelConsistencySpec, head: PixelHeadSpec) -> None:
        super().__init__()
        self.spec = spec
        layers = spec.transform_layers
        self.value_transform = mlp((head.dim,) * (layers + 1), on_maps=True) if layers else nn.Identity()
        widths = (head.dim, head.hidden, head.dim)
        self.instance_predictor = mlp(widths, on_maps=True) if head.instance else None

    def forward(
        self, student: Sequence[PixelOutput], teacher: Sequence[PixelOutput], views: Sequence[View], moment: Moment
    ) -> Loss:
        if len(student) != 2 or len(teacher) != 2:
            raise RecipeError(
                f"PixPro compares two global views; the student has {len(student)}, the teacher {len(teacher)}."
            )
        pixel = self.pixel(student[0], teacher[1], views[0], views[1])
        pixel = pixel + self.pixel(student[1], teacher[0], views[1], views[0])
        if self.instance_predictor is None:
            return Loss(pixel, {"pixel": pixel.detach()})
        instance = self.instance(student[0], teacher[1]) + self.instance(student[1], teacher[0])
        total = pixel + self.spec.instance_weight * instance
        return Loss(total, {"pixel": pixel.detach(), "instance": instance.detach()})

    def pixel(self, student: PixelOutput, teacher: PixelOutput, view: View, other: View) -> Tensor:
        """Return one direction of the pixel loss, from the student's `view` to the teacher's `other`."""
        propagated = self.propagate(student.embedding)  # [B, D, H, W]
        with full_precision(propagated):
            centres = cell_centres(view, propagated), cell_centres(other, teacher.embedding)
            keys = F.normalize(teacher.embedding.detach(), dim=1).flatten(2).transpose(1, 2)  # [B, M, D]
            sums, count = self._sum_of_near(*centres, keys)
            queries = F.normalize(propagated, dim=1).flatten(2).transpose(1, 2)  # [B, N, D]
            cosines = (queries * sums).sum(dim=(1, 2))  # [B]
            return -2 * (cosines / (count + 1e-6)).mean()

    def instance(self, student: PixelOutput, teacher: PixelOutput) -> Tensor:
        """Return one direction of the image-level loss: -2 times the mean cosine of pooled predictions and keys."""
        assert self.instance_predictor is not None
        predicted = at_least_float32(self.instance_predictor(student.instance))
        with full_precision(predicted):
            keys = teacher.instance.detach().mean(dim=(2, 3))
            return -2 * F.cosine_similarity(predicted.mean(dim=(2, 3)), keys, dim=1, eps=1e-12).mean()

    def propagate(self, embedding: Tensor) -> Tensor:
        """Return the sums [B, D, H, W] of equation 3 for an embedding of this shape, before normalisation."""
        values = at_least_float32(self.value_transform(embedding))
        with full_precision(values):
            values = F.normalize(values, dim=1).flatten(2).transpose(1, 2)  # [B, N, D]
            cells = F.normalize(embedding, dim=1).flatten(2).transpose(1, 2)  # [B, N, D]
            blocks = torch.split(cells, self._rows(cells), dim=1)
            propagated = torch.cat([self._propagate_rows(rows, cells, values) for rows in blocks], dim=1)
            return propagated.transpose(1, 2).reshape(embedding.shape)

    def _propagate_rows(self, rows: Tensor, cells: Tensor, values: Tensor) -> Tensor:
        """Return [B, R, D]: values [B, N, D] weighted by the similarity of `rows` [B, R, D] to cells [B, N, D]."""
        gamma, clamp = self.spec.gamma, self.spec.clamp

        def weigh(rows: Tensor, cells: Tensor, values: Tensor) -> Tensor:
            return (rows @ cells.transpose(1, 2)).clamp(min=clamp).pow(gamma) @ values

        if rows.shape[1] == cells.shape[1]:
            return weigh(rows, cells, values)
        part: Tensor = checkpoint(weigh, rows, cells, values, use_reentrant=False, preserve_rng_state=False)
        return part

    @torch.no_grad()
    def _sum_of_near(self, centres: CellCentres, others: CellCentres, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sum [B, N, D] of the near keys [B, M, D] of each cell, and the number [B] of near pairs.

        The sum of cosines of near pairs is the product of these sums with the cells, so no matrix of all pairs is
        stored for the backward pass.
        """
        num_cells, sums, count = centres.xy.shape[1], [], keys.new_zeros(len(keys))
        rows = self._rows(keys)
        for start in range(0, num_cells, rows):
            part = CellCentres(centres.xy[:, start : start + rows], centres.diagonal)
            mask = near(part, others, distance=self.spec.distance).to(keys.dtype)  # [B, R, M]
            sums.append(mask @ keys)
            count += mask.sum(dim=(1, 2))
        return torch.cat(sums, dim=1), count

    def _rows(self, cells: Tensor) -> int:
        """Return the number of cells to compare with all of `cells` [B, N, D] at a time."""
        return max(1, self.spec.pairs_at_once // (cells.shape[0] * cells.shape[1]))


@dataclass(frozen=True)
class CellCentres:
    """Positions of the cells of a map in the image: centres `xy` [B, N, 2], and the `diagonal` [B] of a cell."""

    xy: Tensor
    diagonal: Tensor


def cell_centres(view: View, cells: Tensor) -> CellCentres:
    """Return the positions of the cells of a map [B, D, H, W] of `view`, x and y in [0, 1] of the image.

    Flipped views have x1 and x2 swapped, so their cells start from the right. Sampled cells [B, D, N, 1] are at the
    view's points.
    """
    height, width = view.map_size or cells.shape[2:]
    x1, y1, x2, y2 = corners_px(view).unbind(1)
    step_x, step_y = (x2 - x1) / width, (y2 - y1) / height  # [B]
    if view.points is not None:
        x, y = places(view).unbind(2)  # [B, N]
        xy = torch.stack([x1[:, None] + (x2 - x1)[:, None] * x, y1[:, None] + (y2 - y1)[:, None] * y], dim=2)
        return CellCentres(xy, torch.hypot(step_x, step_y))
    x = x1[:, None] + step_x[:, None] * _halves(width, x1)  # [B, W]
    y = y1[:, None] + step_y[:, None] * _halves(height, y1)  # [B, H]
    shape = (len(x), height, width)
    xy = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=-1)
    return CellCentres(xy.flatten(1, 2), torch.hypot(step_x, step_y))


def _halves(bins: int, like: Tensor) -> Tensor:
    """Return 0.5, 1.5, ... [bins]."""
    return torch.arange(bins, device=like.device, dtype=like.dtype) + 0.5


def near(cells: CellCentres, others: CellCentres, *, distance: float) -> Tensor:
    """Return [B, N, M] bool: pairs of cells nearer than `distance` times the larger of the two cell diagonals."""
    largest = torch.maximum(cells.diagonal, others.diagonal)[:, None, None]
    dx, dy = (cells.xy[:, :, None] - others.xy[:, None]).unbind(-1)
    return torch.hypot(dx, dy) / largest < distance
