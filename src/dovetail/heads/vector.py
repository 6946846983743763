"""One vector per image: global average pooling, then an MLP. The projector of the image-level methods.

Paper: SimCLR, https://arxiv.org/abs/2002.05709, section 2.1 (the projection head g).

Shapes: B images, C channels of the tap, D of the embedding, H x W cells.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from dovetail.errors import RecipeError
from dovetail.heads.base import Activation, HeadSpec, Kind, LastNorm, mlp


class VectorHead(nn.Module):
    """Projects a map [B, C, H, W], pooled over its cells, or a vector [B, C] to [B, D]."""

    def __init__(self, projector: nn.Sequential) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, tap: Tensor) -> Tensor:
        """Return the projection [B, D] of a map [B, C, H, W] or a vector [B, C]."""
        pooled = tap.mean(dim=(2, 3)) if tap.ndim == 4 else tap
        projection: Tensor = self.projector(pooled)
        return projection


@dataclass(frozen=True)
class VectorHeadSpec(HeadSpec):
    """An MLP on the pooled map or the class token.

    Attributes:
        hidden: Width of all layers except the last.
        dim: Width of the last layer, D.
        layers: Number of linear maps; 1 is a linear projector.
        norm: Use BatchNorm after every hidden layer.
        bias: Use a bias in hidden layers.
        last_norm: BatchNorm after the last layer: "none", "plain" (without affine parameters) or "affine".
        last_bias: Use a bias in the last layer; None uses `bias`.
        activation: Activation after every hidden layer.
    """

    hidden: int = 2048
    dim: int = 128
    layers: int = 2
    norm: bool = True
    bias: bool = True
    last_norm: LastNorm = "none"
    last_bias: bool | None = None
    activation: Activation = "relu"

    def __post_init__(self) -> None:
        if min(self.hidden, self.dim, self.layers) < 1:
            raise RecipeError(
                f"The head has {self.layers} layers, {self.hidden} hidden and {self.dim} output channels; use at least "
                "1 of each."
            )

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Maps and vectors."""
        return ("map", "vector")

    def build(self, channels: int) -> VectorHead:
        """Return the head for a tap of `channels` channels."""
        widths = [channels, *[self.hidden] * (self.layers - 1), self.dim]
        return VectorHead(
            mlp(
                widths,
                norm=self.norm,
                activation=self.activation,
                bias=self.bias,
                last_norm=self.last_norm,
                last_bias=self.last_bias,
            )
        )
