"""Heads of the pixel-level contrastive methods: DenseCL's pair of heads and PixPro's projectors.

Shapes: B images, C channels of the tap, D of the embedding, H x W cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from dovetail.heads.base import HeadSpec, Kind, at_least_float32, full_precision, mlp


class DenseOutput(NamedTuple):
    """Output of DenseCL's head; vectors over D have unit length.

    Attributes:
        embedding: [B, D], embedding of the average-pooled tap.
        cells: [B, D, H, W], embedding of each cell.
        pooled: [B, D], average of the cells' embeddings before normalisation.
        features: [B, C, H, W], the tap without gradient, for matching cells.
    """

    embedding: Tensor
    cells: Tensor
    pooled: Tensor
    features: Tensor


@dataclass(frozen=True)
class DenseHeadSpec(HeadSpec):
    """DenseCL's global and dense head (arXiv 2011.09157, section 3.2), with two layers each and no BatchNorm."""

    hidden: int = 2048
    dim: int = 128

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return ("map",)

    def build(self, channels: int) -> DenseHead:
        return DenseHead(channels, self)


class DenseHead(nn.Module):
    """[B, C, H, W] -> `DenseOutput`, in float32 under autocast, except for the tap, which keeps its dtype."""

    def __init__(self, channels: int, spec: DenseHeadSpec) -> None:
        super().__init__()
        widths = (channels, spec.hidden, spec.dim)
        self.global_head = mlp(widths, norm=False)
        self.dense_head = mlp(widths, norm=False, on_maps=True)
        for part in self.modules():
            if isinstance(part, (nn.Linear, nn.Conv2d)):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
                assert part.bias is not None
                nn.init.zeros_(part.bias)

    def forward(self, features: Tensor) -> DenseOutput:
        embedding = at_least_float32(self.global_head(features.mean(dim=(2, 3))))  # [B, D]
        cells = at_least_float32(self.dense_head(features))  # [B, D, H, W]
        with full_precision(cells):
            return DenseOutput(
                embedding=F.normalize(embedding, dim=1),
                cells=F.normalize(cells, dim=1),
                pooled=F.normalize(cells.mean(dim=(2, 3)), dim=1),
                features=features.detach(),
            )


class PixelOutput(NamedTuple):
    """Output of PixPro's head, not normalised: `embedding` and `instance` [B, D, H, W]; [B, 0, H, W] without it."""

    embedding: Tensor
    instance: Tensor


@dataclass(frozen=True)
class PixelHeadSpec(HeadSpec):
    """PixPro's projector (arXiv 2011.10043, section 3.2); `instance` adds a second one for the image-level branch."""

    hidden: int = 4096
    dim: int = 256
    instance: bool = False

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return ("map",)

    def build(self, channels: int) -> PixelHead:
        return PixelHead(channels, self)


class PixelHead(nn.Module):
    """[B, C, H, W] -> `PixelOutput`, in float32 under autocast."""

    def __init__(self, channels: int, spec: PixelHeadSpec) -> None:
        super().__init__()
        widths = (channels, spec.hidden, spec.dim)
        self.projector = mlp(widths, on_maps=True)
        self.instance_projector = mlp(widths, on_maps=True) if spec.instance else None

    def forward(self, features: Tensor) -> PixelOutput:
        embedding = at_least_float32(self.projector(features))  # [B, D, H, W]
        if self.instance_projector is None:
            return PixelOutput(embedding, embedding[:, :0])
        return PixelOutput(embedding, at_least_float32(self.instance_projector(features)))
