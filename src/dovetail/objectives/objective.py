"""The contract of objectives: outputs of both branches and the views they came from -> a scalar and its raw parts."""

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
"""Rows of a sample of assignments; fewer where prototypes are many."""


def sample_rows(logits: Tensor) -> Tensor:
    """Return a sample of the rows of [..., K], evenly spaced: [N, K] of a few million values at most."""
    rows = logits.reshape(-1, logits.shape[-1])
    most = max(min(ROWS, (1 << 22) // rows.shape[1]), 1)
    return rows[:: -(-len(rows) // most)]


BEGINNING = Moment(0, 1, 1)
"""Where a loss is taken to be when it is called without a moment."""


class Loss(NamedTuple):
    """`total` is what is minimised; `parts` are the raw, unweighted terms that the log shows."""

    total: Tensor
    parts: dict[str, Tensor]


class Objective(nn.Module, ABC):
    """Compares what the heads of both branches made of the views.

    `forward` changes no state. `update` moves what has no twin in the teacher (queues, centres), once per
    micro-batch, after the loss. All state is parameters and buffers: saved and loaded, the next loss is bit-equal.
    """

    def __call__(
        self,
        student: Sequence[Any],
        teacher: Sequence[Any] = (),
        views: Sequence[View] = (),
        moment: Moment = BEGINNING,
    ) -> Loss:
        """Return the loss, as `forward` does; views and moment are needed only by losses that look at them.

        Raises:
            RecipeError: For a tensor in the place of a list with one output for each view.
        """
        given: tuple[tuple[str, Any], ...] = (("student", student), ("teacher", teacher))
        for name, outputs in given:
            if isinstance(outputs, Tensor):
                raise RecipeError(f"{name} is a tensor; give a list with one tensor for each view.")
        loss: Loss = super().__call__(student, teacher, views, moment)
        return loss

    @abstractmethod
    def forward(self, student: Sequence[Any], teacher: Sequence[Any], views: Sequence[View], moment: Moment) -> Loss:
        """Return the loss.

        Args:
            student: The student head's output for each of `views`.
            teacher: The teacher head's output, without gradient, for each view that the teacher sees: the first
                ones, as global views come first. Empty for recipes without a teacher.
            views: The views of this term. Of a term with a target (`recipe.Target`): those of the student, one for
                each of `student`, then those of the teacher, one for each of `teacher`.
                If the spec is `one_way`, `student[1]` and `teacher[0]` may be None, as they are not computed.
            moment: Where the run stands, for temperatures that change.
        """

    def assignments(self, teacher: Sequence[Any], moment: Moment) -> Tensor | None:
        """Return the teacher's distributions over prototypes, [N, K] of at most `ROWS` rows; None without prototypes.

        For the monitors, from what the loss has seen.
        """
        return None

    @torch.no_grad()
    def update(self, student: Sequence[Any], teacher: Sequence[Any]) -> None:
        """Move queues and centres by this micro-batch; most objectives have none."""


@dataclass(frozen=True)
class ObjectiveSpec(ABC):
    """Plain data that builds an objective for the head it sits behind."""

    @property
    def one_way(self) -> bool:
        """Whether only the student's first view and the teacher's second enter the loss."""
        return False

    @property
    def points(self) -> Literal["overlap", "view"] | None:
        """Where points must lie for maps sampled at them to be compared (`PointSpec.region`); None: whole maps only."""
        return None

    @abstractmethod
    def build(self, head: HeadSpec) -> Objective:
        """Return the module; raise `DovetailError` if the head's output is not what it compares."""


def connected_zero(*tensors: Tensor) -> Tensor:
    """Return a zero that keeps `tensors` in the graph, so that every rank reduces the same gradients."""
    zero: Tensor = sum((tensor.sum() * 0.0 for tensor in tensors), start=torch.zeros((), device=tensors[0].device))
    return zero
