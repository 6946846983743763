"""The interface of objectives: from the outputs of both branches and their views to a scalar loss and its raw parts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from dovetail.errors import RecipeError
from dovetail.heads.base import HeadSpec
from dovetail.schedules import Moment
from dovetail.views.view import View

ROWS = 512
"""Number of rows in a sample of assignments; fewer with many prototypes."""


def sample_rows(logits: Tensor) -> Tensor:
    """Return an evenly spaced sample of the rows of [..., K]: [N, K] with at most a few million values."""
    rows = logits.reshape(-1, logits.shape[-1])
    most = max(min(ROWS, (1 << 22) // rows.shape[1]), 1)
    return rows[:: -(-len(rows) // most)]


BEGINNING = Moment(0, 1, 1)
"""Default moment of a loss that is called without one."""


class Loss(NamedTuple):
    """`total` is minimised; `parts` are the raw, unweighted terms for the log."""

    total: Tensor
    parts: dict[str, Tensor]


class Objective(nn.Module, ABC):
    """Computes a loss from the head outputs of both branches.

    `forward` changes no state. `update` changes state without a copy in the teacher (queues, centres), once per
    micro-batch, after the loss. All state is in parameters and buffers: after saving and loading, the next loss is
    bit-equal.

    Attributes:
        needs_views: Whether the loss depends on the views. It is then refused without them.
    """

    needs_views: bool = False

    def __call__(
        self,
        student: Sequence[Any],
        teacher: Sequence[Any] = (),
        views: Sequence[View] = (),
        moment: Moment = BEGINNING,
    ) -> Loss:
        """Return the loss of `forward`. Only losses that use views and moment need them.

        Raises:
            RecipeError: If an argument is a tensor instead of a list with one output per view, or views are missing.
        """
        given: tuple[tuple[str, Any], ...] = (("student", student), ("teacher", teacher))
        for name, outputs in given:
            if isinstance(outputs, Tensor):
                raise RecipeError(f"{name} is a tensor; pass a list with one tensor per view.")
        if self.needs_views and len(views) < len(student):
            raise RecipeError(
                f"{type(self).__name__} needs the views of the {len(student)} outputs, got {len(views)}; pass "
                "views=[...] with one dovetail.views.View per output."
            )
        loss: Loss = super().__call__(student, teacher, views, moment)
        return loss

    @abstractmethod
    def forward(self, student: Sequence[Any], teacher: Sequence[Any], views: Sequence[View], moment: Moment) -> Loss:
        """Return the loss.

        Args:
            student: Output of the student's head for each of `views`.
            teacher: Output of the teacher's head, without gradient, for each view of the teacher. These are the first
                views, because global views come first. Empty for recipes without a teacher.
            views: Views of this term. For a term with a target (`recipe.Target`), the views of the student, one per
                element of `student`, then those of the teacher, one per element of `teacher`.
                If the spec is `one_way`, `student[1]` and `teacher[0]` may be None, because they are not computed.
            moment: Moment of the run, for temperatures with a schedule.
        """

    def assignments(self, teacher: Sequence[Any], moment: Moment) -> Tensor | None:
        """Return the teacher's distributions over prototypes, [N, K] of at most `ROWS` rows; None without prototypes.

        The monitors use them.
        """
        return None

    @torch.no_grad()
    def update(self, student: Sequence[Any], teacher: Sequence[Any]) -> None:
        """Update queues and centres with this micro-batch; most objectives have none."""


@dataclass(frozen=True)
class ObjectiveSpec(ABC):
    """Plain data that builds an objective for a head."""

    @property
    def one_way(self) -> bool:
        """Whether only the student's first view and the teacher's second enter the loss."""
        return False

    @property
    def points(self) -> Literal["overlap", "view"] | None:
        """Region of the points for sampled maps (`PointSpec.region`); None supports only whole maps."""
        return None

    @property
    def side(self) -> tuple[str, ...]:
        """Names of the side data that the loss reads from `View.side`. `ViewPlan.side` must list them."""
        return ()

    @abstractmethod
    def build(self, head: HeadSpec) -> Objective:
        """Return the module; raise `DovetailError` if it does not support the head's output."""


def connected_zero(*tensors: Tensor) -> Tensor:
    """Return a zero that keeps `tensors` in the graph, so that every rank reduces the same gradients."""
    zero: Tensor = sum((tensor.sum() * 0.0 for tensor in tensors), start=torch.zeros((), device=tensors[0].device))
    return zero
