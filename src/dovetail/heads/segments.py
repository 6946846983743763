"""DetCon's projector (arXiv 2103.10957, section 3.1 and official code): one embedding for each segment of an image.

Shapes: B images, C channels of the tap, D of the embedding, S sampled segments.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from dovetail.errors import RecipeError
from dovetail.heads.base import HeadSpec, Kind, at_least_float32, mlp


@dataclass(frozen=True)
class SegmentHeadSpec(HeadSpec):
    """An MLP with one hidden layer, BatchNorm and ReLU, for maps that are averaged over segments (`Cells.segments`).

    Attributes:
        hidden: Width of the hidden layer.
        dim: Width of the embedding, D.
    """

    hidden: int = 4096
    dim: int = 256

    def __post_init__(self) -> None:
        if min(self.hidden, self.dim) < 1:
            raise RecipeError(
                f"The head has {self.hidden} hidden and {self.dim} output channels; use at least 1 of each."
            )

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Maps."""
        return ("map",)

    def build(self, channels: int) -> SegmentHead:
        """Return the head for a tap of `channels` channels."""
        return SegmentHead(channels, self)


class SegmentHead(nn.Module):
    """[B, C, S, 1] -> [B, S, D], in float32 under autocast. BatchNorm sees all segments of all images together."""

    def __init__(self, channels: int, spec: SegmentHeadSpec) -> None:
        super().__init__()
        self.projector = mlp((channels, spec.hidden, spec.dim), last_bias=False)

    def forward(self, averaged: Tensor) -> Tensor:
        rows = averaged.flatten(2).transpose(1, 2)  # [B, S, C]
        embedding: Tensor = self.projector(rows.flatten(0, 1))
        return at_least_float32(embedding).reshape(*rows.shape[:2], -1)
