"""SlotCon's objective: group pixels into slots, and contrast the slots (arXiv 2205.15288, sections 3.2 and 3.3).

    group(a, b) = - mean over cells of  softmax((s'_b - c) / t') . log softmax(s_a / t)
    slot(a, b)  = 2 T mean over rows of CE(cos(predictor(slot_a), slot'_b) / T, same image and prototype)
    loss        = w [group(1, 2) + group(2, 1)] + (1 - w) [slot(1, 2) + slot(2, 1)]

with s the cosine scores on the overlap of the two views, primes for the teacher, and c the centre. A slot takes part if
it wins at least one cell of the full view, in both the student's and the teacher's view.

Sampled maps (`Term.cells.points`) have the cells of both views at the same N points of the overlap, so nothing is
resampled. The mean over points is an unbiased estimate of the mean over the overlap. Slots and the centre also come
from the points. Images without such points are excluded from the group loss.

Differences from the official code:
* Images whose crops do not overlap are excluded from the group loss. In the official code they add a constant without
  gradient and count in the mean; set `reference_disjoint_crops` to do the same.
* If the views have no slot in common, or only one, which BatchNorm cannot process, the slot loss is a zero with a
  graph. In the official code it is NaN or an error.

Shapes: B images, D embedding, K prototypes, H x W cells, M participating rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dovetail.distributed import gather, max_over_ranks, mean_over_ranks, mean_over_rows, rank
from dovetail.errors import RecipeError
from dovetail.heads.base import HeadSpec, at_least_float32, full_precision, mlp
from dovetail.heads.masked_mlp import on_host, through_rows
from dovetail.heads.slots import SlotHeadSpec, SlotOutput
from dovetail.objectives.objective import Loss, Objective, ObjectiveSpec, sample_rows
from dovetail.schedules import Moment
from dovetail.views.points import shared
from dovetail.views.view import View, align, overlap_box, overlaps

NOT_COMPARED = -100


class Keys(NamedTuple):
    """Unit rows [N, D], and [N] bool: which rows are slots."""

    rows: Tensor
    counts: Tensor


@dataclass(frozen=True)
class SlotSpec(ObjectiveSpec):
    """Temperatures and weights of SlotCon, with the defaults of the official code.

    Attributes:
        student_temperature: Temperature t of the student's scores.
        teacher_temperature: Temperature t' of the teacher's scores.
        grouping_temperature: Temperature of the assignment of cells to slots, in both branches.
        grouping_eps: Constant added to every assignment, so that no slot is empty.
        contrast_temperature: Temperature T of the slot loss.
        group_weight: Weight w of the group loss in [0, 1].
        centre_momentum: Momentum of the running mean of the teacher's scores.
        predictor_hidden: Width of the slot predictor's hidden layers.
        reference_disjoint_crops: See above; changes the loss of batches with crops that do not overlap.

    Example:
        >>> import torch
        >>> from dovetail.heads.slots import SlotHeadSpec
        >>> from dovetail.views.view import View
        >>> spec = SlotHeadSpec(hidden=16, dim=8, prototypes=6)
        >>> loss, head = SlotSpec(predictor_hidden=16).build(spec), spec.build(12)
        >>> student, teacher = ([head(torch.randn(4, 12, 7, 7)) for _ in range(2)] for _ in range(2))
        >>> total = loss(student, teacher, 2 * [View.of(torch.zeros(4, 3, 56, 56))]).total
    """

    student_temperature: float = 0.1
    teacher_temperature: float = 0.07
    grouping_temperature: float = 0.07
    grouping_eps: float = 1e-6
    contrast_temperature: float = 0.2
    group_weight: float = 0.5
    centre_momentum: float = 0.9
    predictor_hidden: int = 4096
    reference_disjoint_crops: bool = False

    @property
    def points(self) -> Literal["overlap"]:
        """The same points in both views."""
        return "overlap"

    def build(self, head: HeadSpec) -> SlotObjective:
        if not isinstance(head, SlotHeadSpec):
            raise RecipeError(f"SlotCon's objective needs a slot head, got {type(head).__name__}.")
        return SlotObjective(self, head)


class SlotObjective(Objective):
    """SlotCon's loss of the `SlotOutput`s of two global views. State: the predictor and the centre [1, K]."""

    needs_views = True

    centre: Tensor

    def __init__(self, spec: SlotSpec, head: SlotHeadSpec) -> None:
        super().__init__()
        self.spec = spec
        widths = (head.dim, spec.predictor_hidden, spec.predictor_hidden, head.dim)
        self.predictor = mlp(widths, activation="gelu", init_std=0.02)
        self.register_buffer("centre", torch.zeros(1, head.prototypes))

    def forward(
        self, student: Sequence[SlotOutput], teacher: Sequence[SlotOutput], views: Sequence[View], moment: Moment
    ) -> Loss:
        if len(student) != 2 or len(teacher) != 2:
            raise RecipeError(f"SlotCon needs two global views, got {len(views)}.")
        if views[0].points is not None:
            common = shared(views[0], views[1])
            seen, targets = ([nowhere_else(one.scores, common) for one in branch] for branch in (student, teacher))
            return self.total(student, teacher, seen, targets, (common, common))
        boxes = (overlap_box(views[0], views[1]), overlap_box(views[1], views[0]))
        return self.compare(student, teacher, boxes, (views[0].flipped, views[1].flipped))

    def compare(
        self,
        student: Sequence[SlotOutput],
        teacher: Sequence[SlotOutput],
        boxes: Sequence[Tensor],
        flips: Sequence[Tensor],
    ) -> Loss:
        """Return the loss for two views with overlap `boxes` [B, 4] in the frame of each view."""
        where = list(zip(boxes, flips, strict=True))
        seen = [align(one.scores, *place) for one, place in zip(student, where, strict=True)]
        targets = [align(one.scores, *place) for one, place in zip(teacher, where, strict=True)]
        return self.total(student, teacher, seen, targets, [overlaps(box) for box in boxes])

    def total(
        self,
        student: Sequence[SlotOutput],
        teacher: Sequence[SlotOutput],
        seen: Sequence[Tensor],
        targets: Sequence[Tensor],
        valid: Sequence[Tensor],
    ) -> Loss:
        """Return the loss for both views.

        The inputs are their outputs, their scores [B, K, h, w] at the same positions, and which images have such
        positions, [B] bool for each view.
        """
        group = self.group(seen[0], targets[1], valid[0]) + self.group(seen[1], targets[0], valid[1])
        slot = self.slot(student[0], teacher[1]) + self.slot(student[1], teacher[0])
        weight = self.spec.group_weight
        return Loss(weight * group + (1 - weight) * slot, {"group": group, "slot": slot})

    def group(self, seen: Tensor, target: Tensor, valid: Tensor) -> Tensor:
        """Return group(a, b): the teacher's assignment of cells as the student's target, from scores [B, K, H, W]."""
        target = F.softmax((target - self.centre[:, :, None, None]) / self.spec.teacher_temperature, dim=1)
        entropy = -(target * F.log_softmax(seen / self.spec.student_temperature, dim=1)).sum(1)  # [B, H, W]
        if self.spec.reference_disjoint_crops:
            return entropy.mean()
        counts = valid.to(entropy.dtype)  # [B]
        return mean_over_rows((entropy.mean((1, 2)) * counts).sum(), counts.sum())

    def slot(self, student: SlotOutput, teacher: SlotOutput) -> Tensor:
        """Return slot(a, b): each common slot is matched with itself among all active slots of the teacher's batch."""
        student_active, teacher_active = active(student.scores), active(teacher.scores)  # [B, K]
        common = student_active & teacher_active
        enough = self.enough(common)
        order, counts = first_rows(common, most(common, student.scores))  # [B, R]
        rows = taken(self.slots(student), order)  # [B R, D]
        queries = through_rows(self.predictor, rows, counts.flatten(), enough)
        queries = F.normalize(at_least_float32(queries), dim=1)
        keys, labels = self.keys(teacher, teacher_active, order)
        with full_precision(queries):
            logits = queries @ keys.rows.T / self.spec.contrast_temperature
        logits = logits.masked_fill(~keys.counts, -torch.inf)
        labels = labels.masked_fill(~counts, NOT_COMPARED).flatten()
        total = F.cross_entropy(logits, labels, ignore_index=NOT_COMPARED, reduction="sum") * enough
        return mean_over_rows(total, common.sum()) * (2 * self.spec.contrast_temperature)

    def enough(self, common: Tensor) -> Tensor:
        """Return whether there are the two rows that BatchNorm needs, as a scalar bool on the device.

        The rows count together, or on each rank if it has its own statistics. The result is the same on all ranks.
        """
        counts = gather(common.sum()[None])  # [ranks]
        apart = any(isinstance(layer, nn.BatchNorm1d) for layer in self.predictor.modules())
        return (counts.min() if apart else counts.sum()) >= 2

    def keys(self, teacher: SlotOutput, teacher_active: Tensor, order: Tensor) -> tuple[Keys, Tensor]:
        """Return all ranks' teacher slots as unit rows, and [B, R]: the rows of the slots in `order`."""
        places, counts = first_rows(teacher_active, most(teacher_active, teacher.scores))  # [B, N]
        rows = gather(F.normalize(taken(self.slots(teacher), places), dim=1))
        row = teacher_active.cumsum(1) - 1  # within the image
        image = torch.arange(len(row), device=row.device) + rank() * len(row)
        return Keys(rows, gather(counts).flatten()), row.gather(1, order) + image[:, None] * places.shape[1]

    def slots(self, output: SlotOutput) -> Tensor:
        """Return [B, K, D]: the mean embedding of the cells of each slot, weighted by their assignment to it."""
        assignment = F.softmax(output.scores.flatten(2) / self.spec.grouping_temperature, dim=1)  # [B, K, HW]
        assignment = assignment + self.spec.grouping_eps
        assignment = assignment / assignment.sum(2, keepdim=True)
        with full_precision(assignment):
            return assignment @ output.embedding.flatten(2).transpose(1, 2)

    @torch.no_grad()
    def assignments(self, teacher: Sequence[SlotOutput], moment: Moment) -> Tensor | None:
        if not teacher:
            return None
        scores = sample_rows(teacher[0].scores.movedim(1, -1))
        return F.softmax((scores - self.centre) / self.spec.teacher_temperature, dim=1)

    @torch.no_grad()
    def update(self, student: Sequence[SlotOutput], teacher: Sequence[SlotOutput]) -> None:
        """Update the centre with the mean of the teacher's scores over both whole views and all ranks."""
        mean = torch.stack([output.scores.mean((0, 2, 3)) for output in teacher]).mean(0, keepdim=True)
        self.centre.lerp_(mean_over_ranks(mean).to(self.centre.dtype), 1 - self.spec.centre_momentum)


def nowhere_else(scores: Tensor, common: Tensor) -> Tensor:
    """Return scores [B, K, N, 1] with zeros for images without common points, like `align`."""
    return torch.where(common[:, None, None, None], scores, torch.zeros_like(scores))


def active(scores: Tensor) -> Tensor:
    """Return [B, K] bool: the slots that win at least one cell of [B, K, H, W] scores."""
    winner = scores.flatten(2).argmax(1)  # [B, HW]
    won = torch.zeros(scores.shape[:2], dtype=torch.bool, device=scores.device)
    return won.scatter_(1, winner, True)


def most(chosen: Tensor, scores: Tensor) -> int:
    """Return a bound on how many of an image's slots are `chosen` [B, K], the same on all ranks.

    The number of slots that win a cell is at most the number of cells in scores [B, K, H, W]. On a CPU, where reading a
    number does not wait, the bound is the maximum over images.
    """
    if on_host(chosen):
        return max(int(max_over_ranks(chosen.sum(1).max())), 1)
    return min(scores.shape[1], scores.shape[2:].numel())


def first_rows(chosen: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the indices of slots, [B, count] with the `chosen` of [B, K] first in order, and which are chosen."""
    order = chosen.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :count]
    return order, chosen.gather(1, order)


def taken(slots: Tensor, order: Tensor) -> Tensor:
    """Return [B R, D]: the slots of [B, K, D] with indices `order` [B, R], image by image."""
    return slots.gather(1, order[..., None].expand(-1, -1, slots.shape[2])).flatten(0, 1)
