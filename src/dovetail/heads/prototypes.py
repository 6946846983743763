"""DINO's head: MLP, normalisation, weight-normalised prototypes; with iBOT's second set of prototypes for patches.

DINO: Caron et al., 2021, https://arxiv.org/abs/2104.14294. iBOT: Zhou et al., 2022, https://arxiv.org/abs/2111.07832.

Difference from the official code: embedding and prototypes are compared in float32 under autocast, because a
temperature of 0.04 would magnify the rounding errors of bfloat16 to a tenth of a logit.

Shapes: B images, N tokens, C channels of the tap, D of the bottleneck, K prototypes, H x W cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dovetail.errors import RecipeError
from dovetail.heads.base import HeadSpec, Kind, at_least_float32, full_precision, mlp

PATCH_OUTPUT = "patch"


@dataclass(frozen=True)
class PrototypeHeadSpec(HeadSpec):
    """DINO's head (code of arXiv 2104.14294).

    Attributes:
        hidden: Width of the hidden layers.
        bottleneck: Width of the embedding before the prototypes.
        prototypes: Number of prototypes.
        layers: Number of linear maps before the prototypes, at least 1.
        norm: Use BatchNorm after hidden layers (for convolutional encoders).
        learned_magnitude: Learn the norm of each prototype (DINO's `norm_last_layer=False`) instead of fixing it at 1.
        patch_prototypes: Number of prototypes of patches after the same MLP (iBOT), as the output "patch"; 0 for none.
    """

    hidden: int = 2048
    bottleneck: int = 256
    prototypes: int = 65536
    layers: int = 3
    norm: bool = False
    learned_magnitude: bool = False
    patch_prototypes: int = 0

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise RecipeError(f"layers of the prototype head is {self.layers}; it must be at least 1.")

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return ("vector", "tokens")

    def build(self, channels: int) -> PrototypeHead:
        return PrototypeHead(channels, self)

    def width(self, output: str = "") -> int:
        """Return the number of prototypes K of an output; raise `RecipeError` if the head lacks it."""
        if output not in ("", PATCH_OUTPUT) or (output and not self.patch_prototypes):
            raise RecipeError(f"The prototype head has no output {output!r}; set patch_prototypes for 'patch'.")
        return self.patch_prototypes if output else self.prototypes


@dataclass(frozen=True)
class PooledPrototypeHeadSpec(PrototypeHeadSpec):
    """DINO's head on the mean over the cells of a map, for convolutional encoders."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return ("map",)


class PrototypeHead(nn.Module):
    """[B, C] -> [B, K], or [B, N, C] -> [B, N, K]: logits, which are cosines unless magnitudes are learned.

    With `PooledPrototypeHeadSpec`, a map [B, C, H, W] is averaged over its cells first.
    """

    def __init__(self, channels: int, spec: PrototypeHeadSpec) -> None:
        super().__init__()
        self.pooled = isinstance(spec, PooledPrototypeHeadSpec)
        widths = (channels, *[spec.hidden] * (spec.layers - 1), spec.bottleneck)
        self.mlp = mlp(widths, norm=spec.norm, activation="gelu", init_std=0.02)
        self.last_layer = Prototypes(spec.bottleneck, spec.prototypes, learned_magnitude=spec.learned_magnitude)
        self.last_layer_patch: Prototypes | None = None
        if spec.patch_prototypes:
            self.last_layer_patch = Prototypes(
                spec.bottleneck, spec.patch_prototypes, learned_magnitude=spec.learned_magnitude
            )

    def forward(self, features: Tensor, output: str = "") -> Tensor:
        """Return the logits in at least float32; `output="patch"` uses the prototypes of patches."""
        features = features.mean(dim=(2, 3)) if self.pooled and features.ndim == 4 else features
        rows = features.reshape(-1, features.shape[-1])  # BatchNorm sees every token as a sample
        embedding = F.normalize(at_least_float32(self.mlp(rows)), dim=1)
        prototypes = self.last_layer_patch if output == PATCH_OUTPUT else self.last_layer
        assert prototypes is not None  # checked when the recipe was built
        logits: Tensor = prototypes(embedding)
        return logits.reshape(*features.shape[:-1], logits.shape[-1])


class Prototypes(nn.Module):
    """[B, D] -> [B, K] against `magnitude * direction / |direction|`; both are `last_layer` to DINO's freezing rule."""

    def __init__(self, dim: int, count: int, *, learned_magnitude: bool) -> None:
        super().__init__()
        # The default initialisation of a linear map, as in DINO's code.
        self.direction = nn.Parameter(nn.init.kaiming_uniform_(torch.empty(count, dim), a=math.sqrt(5)))
        self.magnitude = nn.Parameter(torch.ones(count, 1)) if learned_magnitude else None

    def forward(self, embedding: Tensor) -> Tensor:
        direction = at_least_float32(self.direction)
        scale = torch.linalg.vector_norm(direction, dim=1, keepdim=True).clamp(min=1e-12).reciprocal()  # [K, 1]
        if self.magnitude is not None:
            scale = scale * at_least_float32(self.magnitude)
        with full_precision(embedding):
            # Scale the smaller of the two products, because scaling K x D prototypes is expensive.
            if len(embedding) < embedding.shape[1]:
                logits: Tensor = F.linear(embedding, direction) * scale[:, 0]
                return logits
            return F.linear(embedding, direction * scale)
