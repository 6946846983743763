"""DINO's objective: the student predicts the centred, sharpened distribution of the teacher over prototypes.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", 2021, https://arxiv.org/abs/2104.14294.
With H(P, s) = -sum_k P_k log softmax(s / student_temperature)_k and P = softmax((t - centre) / teacher_temperature):

    loss = mean over pairs (u, v), images and tokens of H(P_u, s_v)

In a pair, u is a global view of the teacher, and v is another view of the student ("cross") or the same view ("same").
On vectors this is DINO's loss. On query tokens [B, S, K] of the two global views it is ADCLR's loss
(https://arxiv.org/abs/2306.13337): query i of one view with query i of the other, 1/(2S) of the sum over both.

The centre is a moving mean of the teacher's raw logits over all its views and all ranks. The loss uses the centre
before the update.

Shapes: B images, N tokens, K prototypes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from dovetail.distributed import mean_over_ranks
from dovetail.errors import RecipeError
from dovetail.heads.base import HeadSpec, at_least_float32
from dovetail.heads.prototypes import PrototypeHeadSpec
from dovetail.objectives.objective import Loss, Objective, ObjectiveSpec, sample_rows
from dovetail.schedules import Moment, Schedule, value_at
from dovetail.views.view import View

Pairing = Literal["cross", "same"]


@dataclass(frozen=True)
class CentredSpec(ObjectiveSpec):
    """An objective on prototypes with a centred teacher.

    Attributes:
        student_temperature: Temperature of the student, above 0.
        teacher_temperature: Temperature of the teacher, above 0.
        centre_momentum: Momentum of the centre, in [0, 1].
    """

    student_temperature: float = 0.1
    teacher_temperature: Schedule = 0.04
    centre_momentum: float = 0.9


@dataclass(frozen=True)
class DistillSpec(CentredSpec):
    """DINO's objective: `pairing` is "cross" or "same" views; see the module's docstring.

    Example:
        >>> import torch
        >>> from dovetail.heads.prototypes import PrototypeHeadSpec
        >>> loss = DistillSpec().build(PrototypeHeadSpec(prototypes=6))
        >>> student, teacher = [torch.randn(4, 6) for _ in range(2)], [torch.randn(4, 6) for _ in range(2)]
        >>> total = loss(student, teacher).total
        >>> loss.update(student, teacher)  # after the backward pass: updates the centre
    """

    pairing: Pairing = "cross"

    def build(self, head: HeadSpec) -> DistillObjective:
        return DistillObjective(self, prototypes_of(head, "DINO's objective"))


def prototypes_of(head: HeadSpec, what: str, output: str = "") -> int:
    """Return the number of prototypes of `head`; raise `RecipeError` if it is not a prototype head."""
    if not isinstance(head, PrototypeHeadSpec):
        raise RecipeError(f"{what} needs a prototype head, got {type(head).__name__}.")
    return head.width(output)


class CentredObjective(Objective):
    """An objective with a centre [K] of the teacher's logits. Logits of each view are [B, K] or [B, N, K]."""

    centre: Tensor
    spec: CentredSpec

    def __init__(self, spec: CentredSpec, prototypes: int) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("centre", torch.zeros(prototypes))

    @torch.no_grad()
    def assignments(self, teacher: Sequence[Tensor], moment: Moment) -> Tensor | None:
        if not teacher:
            return None
        return soften(sample_rows(teacher[0]), self.centre, value_at(self.spec.teacher_temperature, moment))

    @torch.no_grad()
    def update(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
        move_centre(self.centre, teacher, self.spec.centre_momentum)


class DistillObjective(CentredObjective):
    """See the module's docstring. Logits of each view are [B, K] or [B, N, K]."""

    spec: DistillSpec

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], views: Sequence[View], moment: Moment
    ) -> Loss:
        temp = value_at(self.spec.teacher_temperature, moment)
        targets = {
            index: soften(logits, self.centre, temp)
            for index, logits in enumerate(teacher)
            if not views or views[index].role == "global"
        }
        losses: list[Tensor] = []
        pairs = 0
        for index, logits in enumerate(student):
            chosen = [target for other, target in targets.items() if (other == index) == (self.spec.pairing == "same")]
            if chosen:
                # One product with the sum of targets instead of one per target: less memory, same loss.
                target = sum(chosen[1:], start=chosen[0])
                losses.append(cross_entropy(target, logits, self.spec.student_temperature).mean())
                pairs += len(chosen)
        if not pairs:
            raise RecipeError(
                f"{len(student)} view(s) have no {self.spec.pairing}-view pair; use two global views in the recipe."
            )
        total = torch.stack(losses).sum() / pairs
        return Loss(total, {"cross_entropy": total})


def soften(logits: Tensor, centre: Tensor, temp: float) -> Tensor:
    """Return the teacher's distribution softmax((logits - centre) / temp) over the last dimension."""
    return F.softmax((at_least_float32(logits) - centre).div_(temp), dim=-1)


def cross_entropy(target: Tensor, logits: Tensor, temp: float) -> Tensor:
    """Return -sum_k target_k log softmax(logits / temp)_k over the last dimension; no gradient reaches `target`."""
    entropy: Tensor = _CrossEntropy.apply(target, at_least_float32(logits), temp)
    return entropy


class _CrossEntropy(torch.autograd.Function):
    """Cross-entropy as (sum_k target_k) logsumexp - sum_k target_k logit_k, which stores only its inputs.

    The gradient overwrites one array. With 65,536 prototypes these arrays are the largest of a step.
    """

    @staticmethod
    def forward(ctx: Any, target: Tensor, logits: Tensor, temp: float) -> Tensor:
        scaled = logits / temp
        ctx.temp, mass, normal = temp, target.sum(dim=-1), torch.logsumexp(scaled, dim=-1)
        ctx.save_for_backward(target, logits, mass, normal)
        entropy: Tensor = mass * normal - torch.linalg.vecdot(target, scaled)
        return entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        target, logits, mass, normal = ctx.saved_tensors
        gradient = (logits / ctx.temp).sub_(normal[..., None]).exp_().mul_(mass[..., None]).sub_(target)
        return None, gradient.mul_((grad / ctx.temp)[..., None]), None


@torch.no_grad()
def move_centre(centre: Tensor, teacher: Sequence[Tensor], momentum: float) -> None:
    """Set `centre` [K] to `momentum * centre + (1 - momentum) * mean` of raw logits over all ranks, in place.

    All rows have the same weight, whether images or tokens.
    """
    rows = torch.cat([at_least_float32(logits).reshape(-1, logits.shape[-1]) for logits in teacher])
    centre.lerp_(mean_over_ranks(rows.mean(dim=0)).to(centre.dtype), 1 - momentum)
