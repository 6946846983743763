"""Shared parts of the image-level objectives: predictors and pairs of views.

Shapes: B images of this rank, D channels of the embedding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from dovetail.errors import RecipeError
from dovetail.heads.base import HeadSpec, LastNorm, at_least_float32, mlp
from dovetail.heads.vector import VectorHeadSpec


@dataclass(frozen=True)
class PredictorSpec:
    """An MLP on the student's projection without a copy in the teacher; input and output have the same width.

    Attributes:
        hidden: Width of the hidden layers.
        layers: Number of linear maps.
        bias: Use a bias in hidden layers.
        last_norm: BatchNorm after the last layer: "none", "plain" (without affine parameters) or "affine".
        last_bias: Use a bias in the last layer; None uses `bias`.
    """

    hidden: int = 4096
    layers: int = 2
    bias: bool = True
    last_norm: LastNorm = "none"
    last_bias: bool | None = None

    def build(self, dim: int) -> nn.Sequential:
        """Return the predictor for projections of `dim` channels."""
        widths = [dim, *[self.hidden] * (self.layers - 1), dim]
        return mlp(widths, bias=self.bias, last_norm=self.last_norm, last_bias=self.last_bias)


def vector_dim(head: HeadSpec, objective: str) -> int:
    """Return the width of the vectors of `head`; raise `RecipeError` if it does not output vectors."""
    if not isinstance(head, VectorHeadSpec):
        raise RecipeError(
            f"Objective {objective!r} needs one vector per image, but {type(head).__name__} does not output one; "
            "use a VectorHeadSpec."
        )
    return head.dim


def crossed_pairs(num_targets: int, num_predictions: int) -> list[tuple[int, int]]:
    """Return (target, prediction) indices of all pairs of two different views, targets in order.

    >>> crossed_pairs(2, 3)
    [(0, 1), (0, 2), (1, 0), (1, 2)]
    """
    return [(target, view) for target in range(num_targets) for view in range(num_predictions) if view != target]


def require_views(outputs: Sequence[Tensor], objective: str, *, exactly: int | None = None) -> None:
    """Raise `RecipeError` unless there are at least two views, or `exactly` so many."""
    if exactly is not None and len(outputs) != exactly:
        raise RecipeError(f"Objective {objective!r} needs {exactly} views, got {len(outputs)}.")
    if len(outputs) < 2:
        raise RecipeError(f"Objective {objective!r} needs two views, got {len(outputs)}; add a view.")


def require_teacher(outputs: Sequence[Tensor], objective: str) -> None:
    """Raise `RecipeError` if there are no teacher outputs for two views."""
    if len(outputs) < 2:
        raise RecipeError(
            f"Objective {objective!r} needs a teacher with two views, got {len(outputs)}; "
            "set the recipe's teacher_momentum and teacher_views."
        )


def unit(vectors: Tensor) -> Tensor:
    """Return vectors [..., D] of length one, in float32 or better."""
    return F.normalize(at_least_float32(vectors), dim=-1)
