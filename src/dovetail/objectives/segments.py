"""DetCon's objective: contrast the embeddings of segments (arXiv 2103.10957, section 3.1, equations 1 to 3).

    loss(a, b) = mean over images and segments i of  w_i CE(i),   loss = loss(1, 2) + loss(2, 1)
    CE(i)      = - mean over positives p of  log( exp(s_ip / T) / sum over candidates c of exp(s_ic / T) )
    w_i        = 1 / (how often segment i was sampled in its view) if it has a positive, otherwise 0

with s the cosine of the student's prediction and the teacher's projection. Positives of a segment in one view are the
samples of the same segment of the same image in the other view, so a segment that only one view shows has none.
Candidates are all samples of all images in both views, on all ranks, except those of the segment itself in its own
view. Other segments of the same image are therefore negatives.

Differences from the official code: none known in the loss. The official code subtracts 1e9 where this one excludes a
candidate, and stores all similarities; here they are computed in blocks and recomputed in the backward pass.

Shapes: B images of this rank, S sampled segments of a view, D embedding, N = ranks * B * S rows of a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from dovetail.distributed import gather, rank
from dovetail.errors import RecipeError
from dovetail.heads.base import HeadSpec, full_precision
from dovetail.heads.segments import SegmentHeadSpec
from dovetail.objectives.contrast import ROWS_PER_BLOCK, check_numbers, mean_in_blocks
from dovetail.objectives.objective import Loss, Objective, ObjectiveSpec
from dovetail.objectives.vector import PredictorSpec, require_teacher, require_views, unit
from dovetail.schedules import Moment
from dovetail.views.view import View


@dataclass(frozen=True)
class SegmentContrastSpec(ObjectiveSpec):
    """DetCon-B's loss, with the defaults of the official code.

    Attributes:
        temperature: Temperature T, above 0.
        predictor: Predictor of the student; None compares the heads' outputs directly.
        rows_per_block: Number of segments whose similarities are in memory at a time; None keeps all.

    Example:
        >>> import torch
        >>> from dataclasses import replace
        >>> from dovetail.heads.segments import SegmentHeadSpec
        >>> from dovetail.views.view import View
        >>> loss = SegmentContrastSpec(predictor=None).build(SegmentHeadSpec(dim=8))
        >>> same, other = torch.eye(8)[:6].view(3, 2, 8), torch.eye(8)[:6].flip(0).view(3, 2, 8)
        >>> view = replace(View.of(torch.zeros(3, 3, 32, 32)), ids=torch.tensor([[0, 1]] * 3))  # of 2 segments each
        >>> bool(loss([same, same], [same, same], [view, view]).total < loss([same] * 2, [other] * 2, [view] * 2).total)
        True
    """

    temperature: float = 0.1
    predictor: PredictorSpec | None = field(default_factory=lambda: PredictorSpec(last_bias=False))
    rows_per_block: int | None = ROWS_PER_BLOCK

    def __post_init__(self) -> None:
        check_numbers("segment contrast", self.temperature, self.rows_per_block)

    def build(self, head: HeadSpec) -> SegmentContrast:
        """Return the objective for a head that outputs one vector per segment."""
        if not isinstance(head, SegmentHeadSpec):
            raise RecipeError(f"DetCon's loss compares the output of a SegmentHeadSpec; the term has {head}.")
        return SegmentContrast(self, head)


class Samples(NamedTuple):
    """The sampled segments of one view: unit rows [N, D], and each one's image [N] and segment [N]."""

    rows: Tensor
    image: Tensor
    segment: Tensor

    def same(self, other: Samples) -> Tensor:
        """Return [N, M] bool: which samples of two views are the same segment of the same image."""
        return (self.image[:, None] == other.image) & (self.segment[:, None] == other.segment)


class SegmentContrast(Objective):
    """DetCon's loss of the embeddings [B, S, D] of two views, whose `View.ids` are the segments.

    Parts: `contrast`, and `shared`, the fraction of samples with a positive.
    """

    needs_views = True

    def __init__(self, spec: SegmentContrastSpec, head: SegmentHeadSpec) -> None:
        super().__init__()
        self.spec = spec
        self.predictor: nn.Module = nn.Identity() if spec.predictor is None else spec.predictor.build(head.dim)

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], views: Sequence[View], moment: Moment
    ) -> Loss:
        require_views(student, "segment contrast", exactly=2)
        require_teacher(teacher, "segment contrast")
        ids = [view.ids for view in views if view.ids is not None]
        if len(ids) != 2:
            raise RecipeError("DetCon's loss needs the segments of two views; set Cells(segments=...) of its term.")
        predicted = [self.predictor(one.flatten(0, 1)).reshape(one.shape) for one in student]
        with full_precision(predicted[0]):
            own = [self.samples(one, segment) for one, segment in zip(predicted, ids, strict=True)]
            keys = [
                self.samples(one.detach(), segment, everywhere=True) for one, segment in zip(teacher, ids, strict=True)
            ]
            losses, shared = zip(*(self.direction(own[a], keys[1 - a], keys[a]) for a in (0, 1)), strict=True)
            total = losses[0] + losses[1]
        return Loss(total, {"contrast": total.detach(), "shared": torch.stack(shared).mean()})

    def samples(self, embedding: Tensor, ids: Tensor, *, everywhere: bool = False) -> Samples:
        """Return the samples of embeddings [B, S, D], of this rank or of all ranks without gradient."""
        rows, batch = unit(embedding), len(embedding)
        image = (torch.arange(batch, device=ids.device) + rank() * batch)[:, None].expand_as(ids)
        if everywhere:
            rows, image, ids = gather(rows), gather(image), gather(ids)
        return Samples(rows.flatten(0, 1), image.flatten(), ids.flatten())

    def direction(self, own: Samples, other: Samples, beside: Samples) -> tuple[Tensor, Tensor]:
        """Return the loss of one view's samples, and the fraction with a positive.

        `other` are the keys of the other view, and `beside` those of the same view.
        """
        positive = own.same(other)  # [B S, N]
        count, repeats = positive.sum(dim=1), own.same(own).sum(dim=1)  # [B S]
        weight = (count > 0).to(own.rows.dtype) / repeats

        def sum_of(block: slice, rows: Tensor, keys: Tensor) -> Tensor:
            logits = (rows[block] / self.spec.temperature) @ keys.T  # [rows, 2 N]
            part = Samples(rows[block], own.image[block], own.segment[block])
            right = (logits[:, : positive.shape[1]] * positive[block]).sum(dim=1) / count[block].clamp(min=1)
            itself = torch.cat([torch.zeros_like(positive[block]), part.same(beside)], dim=1)
            return (weight[block] * (torch.logsumexp(logits.masked_fill(itself, -torch.inf), dim=1) - right)).sum()

        keys = torch.cat([other.rows, beside.rows])
        loss = mean_in_blocks(sum_of, own.rows, keys, rows_per_block=self.spec.rows_per_block)
        return loss, (count > 0).to(loss.dtype).mean()
