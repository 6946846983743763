"""SlotCon's head: projector and prototypes.

Shapes: B images, C channels of the tap, D of the embedding, K prototypes, H x W cells.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from dovetail.heads.base import HeadSpec, Kind, at_least_float32, full_precision, mlp


class SlotOutput(NamedTuple):
    """Output of SlotCon's head: `embedding` [B, D, H, W] and raw `scores` [B, K, H, W], cosines to the prototypes."""

    embedding: Tensor
    scores: Tensor


@dataclass(frozen=True)
class SlotHeadSpec(HeadSpec):
    """SlotCon's projector and prototypes (arXiv 2205.15288, section 3; widths of the official code)."""

    hidden: int = 4096
    dim: int = 256
    prototypes: int = 256

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return ("map",)

    def build(self, channels: int) -> SlotHead:
        return SlotHead(channels, self)


class SlotHead(nn.Module):
    """[B, C, H, W] -> `SlotOutput`. The cosine scores are computed in float32 under autocast."""

    def __init__(self, channels: int, spec: SlotHeadSpec) -> None:
        super().__init__()
        widths = (channels, spec.hidden, spec.hidden, spec.dim)
        self.projector = mlp(widths, on_maps=True, activation="gelu", init_std=0.02)
        self.prototypes = nn.Embedding(spec.prototypes, spec.dim)

    def forward(self, features: Tensor) -> SlotOutput:
        embedding = at_least_float32(self.projector(features))  # [B, D, H, W]
        with full_precision(embedding):
            prototypes = F.normalize(at_least_float32(self.prototypes.weight), dim=1)  # [K, D]
            scores = F.conv2d(F.normalize(embedding, dim=1), prototypes[:, :, None, None])  # [B, K, H, W]
        return SlotOutput(embedding, scores)
