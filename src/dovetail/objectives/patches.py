"""Objectives on patches of the same view: iBOT's masked patches and SelfPatch's neighbours.

iBOT: Zhou et al., "iBOT: Image BERT Pre-Training with Online Tokenizer", 2022, https://arxiv.org/abs/2111.07832.

    loss = mean over global views and images of (1 / max(M, 1)) sum over the M masked patches of H(P_teacher, s_student)

The student sees the masked image and the teacher the whole image. An image without a mask counts as 0. All patches of
the teacher update the centre. Only masked patches enter the softmax, which dominates the cost of the loss.

SelfPatch: Yun et al., 2022, https://arxiv.org/abs/2206.07990 (equations 3 to 5). Its patch loss compares each patch of
the student with the teacher's aggregate of that patch's neighbours, in all views, local ones too:

    loss = DINO(cls) + patch_weight * mean over views, images and patches of H(P_teacher, s_student)

H and P are those of `distill`. Shapes: B images, N patches, K prototypes of the image, L of patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dovetail.errors import RecipeError
from dovetail.heads.aggregate import SelfPatchHeadSpec, SelfPatchOutput
from dovetail.heads.base import HeadSpec
from dovetail.heads.prototypes import PATCH_OUTPUT, PrototypeHeadSpec
from dovetail.objectives.distill import (
    CentredObjective,
    CentredSpec,
    DistillObjective,
    DistillSpec,
    cross_entropy,
    prototypes_of,
    soften,
)
from dovetail.objectives.objective import Loss, Objective, connected_zero
from dovetail.schedules import Moment, value_at
from dovetail.views.view import View


@dataclass(frozen=True)
class MaskedPatchSpec(CentredSpec):
    """iBOT's objective on masked patches, with the fields of `CentredSpec`.

    Example:
        >>> import torch
        >>> from dataclasses import replace
        >>> from dovetail.heads.prototypes import PrototypeHeadSpec
        >>> from dovetail.views.view import View
        >>> loss = MaskedPatchSpec().build(PrototypeHeadSpec(prototypes=6))
        >>> view = replace(View.of(torch.zeros(2, 3, 32, 32)), mask=torch.rand(2, 4, 4) < 0.4)
        >>> total = loss([torch.randn(2, 16, 6)], [torch.randn(2, 16, 6)], [view]).total
    """

    def build(self, head: HeadSpec) -> MaskedPatchObjective:
        separate = isinstance(head, PrototypeHeadSpec) and head.patch_prototypes > 0
        return MaskedPatchObjective(self, prototypes_of(head, "iBOT's objective", PATCH_OUTPUT if separate else ""))


class MaskedPatchObjective(CentredObjective):
    """See the module's docstring. Logits of each view are [B, N, K]; the views contain the masks."""

    needs_views = True

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], views: Sequence[View], moment: Moment
    ) -> Loss:
        temp = value_at(self.spec.teacher_temperature, moment)
        losses: list[Tensor] = []
        for logits, seen, view in zip(student, teacher, views, strict=False):  # the teacher sees the first views
            if view.mask is None:
                losses.append(connected_zero(logits))
                continue
            mask = view.mask.flatten(1)  # [B, N]
            places = masked_places(mask, view.masked)
            target = soften(seen.flatten(0, 1)[places], self.centre, temp)
            each = cross_entropy(target, logits.flatten(0, 1)[places], self.spec.student_temperature)
            share = mask.to(each.dtype) / mask.sum(dim=1, keepdim=True).clamp(min=1)
            losses.append((each * share.flatten()[places]).sum() / len(mask))
        if not losses:
            raise RecipeError(
                "Masked patches need the teacher's output; add the global views to teacher_views of the recipe."
            )
        total = torch.stack(losses).mean()
        return Loss(total, {"cross_entropy": total})


def masked_places(mask: Tensor, count: int | None) -> Tensor:
    """Return [M]: indices of the masked patches of [B, N] among all B N patches, in order.

    Does not wait for the device if `count`, which is M, is known.
    """
    count = int(mask.sum()) if count is None else count
    return (~mask).flatten().to(torch.int8).argsort(stable=True)[:count]


@dataclass(frozen=True)
class SelfPatchSpec(CentredSpec):
    """SelfPatch's two losses, with the fields of `CentredSpec`, which apply to image and patches.

    Attributes:
        patch_weight: Weight of the loss on patches relative to that on images.
    """

    patch_weight: float = 0.1

    def build(self, head: HeadSpec) -> SelfPatchObjective:
        if not isinstance(head, SelfPatchHeadSpec):
            raise RecipeError(f"SelfPatch's objective needs SelfPatch's head, got {type(head).__name__}.")
        return SelfPatchObjective(self, head)


class SelfPatchObjective(Objective):
    """See the module's docstring. The teacher sees local views too; only global views are targets of the image."""

    needs_views = True

    def __init__(self, spec: SelfPatchSpec, head: SelfPatchHeadSpec) -> None:
        super().__init__()
        self.spec = spec
        distill = DistillSpec(spec.student_temperature, spec.teacher_temperature, spec.centre_momentum)
        self.cls = DistillObjective(distill, head.cls.width())
        self.patches = SamePatchObjective(distill, head.patch.width())

    def forward(
        self,
        student: Sequence[SelfPatchOutput],
        teacher: Sequence[SelfPatchOutput],
        views: Sequence[View],
        moment: Moment,
    ) -> Loss:
        cls = self.cls([one.cls for one in student], [one.cls for one in teacher], views, moment).total
        patches = self.patches([one.patches for one in student], [one.patches for one in teacher], views, moment).total
        return Loss(cls + self.spec.patch_weight * patches, {"cls": cls, "patches": patches})

    @torch.no_grad()
    def assignments(self, teacher: Sequence[SelfPatchOutput], moment: Moment) -> Tensor | None:
        return self.cls.assignments([one.cls for one in teacher], moment)

    @torch.no_grad()
    def update(self, student: Sequence[SelfPatchOutput], teacher: Sequence[SelfPatchOutput]) -> None:
        self.cls.update([one.cls for one in student], [one.cls for one in teacher])
        self.patches.update([one.patches for one in student], [one.patches for one in teacher])


class SamePatchObjective(CentredObjective):
    """Loss of every patch of the student with the teacher's target; logits of each view are [B, N, K]."""

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], views: Sequence[View], moment: Moment
    ) -> Loss:
        if len(student) != len(teacher):
            raise RecipeError(
                f"SelfPatch compares all {len(student)} views, but its teacher saw {len(teacher)}; add local views to "
                "teacher_views of the recipe."
            )
        temp = value_at(self.spec.teacher_temperature, moment)
        losses = [
            cross_entropy(soften(target, self.centre, temp), logits, self.spec.student_temperature).mean()
            for logits, target in zip(student, teacher, strict=True)
        ]
        total = torch.stack(losses).mean()
        return Loss(total, {"cross_entropy": total})
