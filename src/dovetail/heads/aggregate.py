"""SelfPatch's head: class-attention over all patches and, in the teacher, over each patch's most similar neighbours.

Yun et al., "Patch-level Representation Learning for Self-supervised Vision Transformers", CVPR 2022,
https://arxiv.org/abs/2206.07990 (sections 3.2 and 3.3).

Differences from the official code: patches at the border have 5 or 3 neighbours, and any grid is supported instead
of only 14 x 14 and 6 x 6. The official code uses patches of the opposite border as neighbours, which mixes
unrelated patches into the targets (`reference_wraparound`, off by default).

Cost: in the teacher, N class tokens attend to k + 1 tokens each; keys and values of patches are computed once.

Shapes: B images, N = h w patches, C channels, G groups (1 or N), M members of a group, k neighbours, h heads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dovetail.errors import OptionsError
from dovetail.heads.base import (
    HeadSpec,
    Kind,
    TeacherAware,
    at_least_float32,
    full_precision,
    init_truncated_normal,
)
from dovetail.heads.prototypes import PrototypeHeadSpec


class SelfPatchOutput(NamedTuple):
    """Logits of the image, `cls` [B, K], and of every patch, `patches` [B, N, L]."""

    cls: Tensor
    patches: Tensor


class Neighbours(NamedTuple):
    """Flat indices of patches [..., M], and whether each is valid; at the border fewer than M are."""

    patch: Tensor
    valid: Tensor


@dataclass(frozen=True)
class SelfPatchHeadSpec(HeadSpec):
    """SelfPatch's aggregation module and its two prototype heads.

    Attributes:
        cls: Head of the aggregated class token.
        patch: Head of the patches.
        neighbours: Number of adjacent patches, out of at most 8, that form the target of a patch.
        blocks: Number of class-attention blocks.
        head_channels: Channels per attention head; the tap's channels must be a multiple.
        reference_wraparound: See the module's docstring.
        mlp_ratio: Hidden width of the blocks' MLPs relative to their input.
        init_std: Standard deviation of the blocks' initial linear layers. The official 0.02 is meant for at least 384
            channels; with a few dozen channels, too little of the patches reaches the class token at first.
        grids: (rows, columns) of the patches of views that are not square.
    """

    cls: PrototypeHeadSpec = field(default_factory=PrototypeHeadSpec)
    patch: PrototypeHeadSpec = field(default_factory=lambda: PrototypeHeadSpec(prototypes=4096))
    neighbours: int = 4
    blocks: int = 2
    head_channels: int = 64
    reference_wraparound: bool = False
    mlp_ratio: float = 4.0
    init_std: float = 0.02
    grids: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.neighbours <= 8:
            raise OptionsError(f"neighbours is {self.neighbours}; it must be from 1 to 8.")
        if len({rows * columns for rows, columns in self.grids}) < len(self.grids):
            shown = " and ".join(f"{rows}x{columns}" for rows, columns in self.grids)
            raise OptionsError(
                f"SelfPatch cannot distinguish views of {shown} patches, which have equally many; change local_size."
            )

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return ("tokens",)

    def build(self, channels: int) -> SelfPatchHead:
        return SelfPatchHead(channels, self)


class SelfPatchHead(nn.Module, TeacherAware):
    """Patch tokens [B, N, C] before the final norm -> `SelfPatchOutput`; the teacher aggregates its patches."""

    def __init__(self, channels: int, spec: SelfPatchHeadSpec) -> None:
        super().__init__()
        if channels % spec.head_channels:
            raise OptionsError(
                f"SelfPatch's head_channels {spec.head_channels} does not divide {channels} channels; choose a divisor."
            )
        self.spec = spec
        self.aggregation = Aggregation(channels, spec)
        self.cls_head = spec.cls.build(channels)
        self.patch_head = spec.patch.build(channels)
        self.in_teacher = False

    def become_teacher(self) -> None:
        """Aggregate the neighbours of every patch from now on."""
        self.in_teacher = True

    def forward(self, tokens: Tensor) -> SelfPatchOutput:
        cls, patches = self.aggregate(tokens)
        return SelfPatchOutput(self.cls_head(cls), self.patch_head(patches))

    def aggregate(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return the image's vector [B, C] and the patches' [B, N, C], before the prototype heads."""
        cls = self.aggregation(tokens)[:, 0]
        if not self.in_teacher:
            return cls, self.aggregation.norm(tokens)
        return cls, self.aggregation(tokens, self.choose(tokens))

    def choose(self, tokens: Tensor) -> Neighbours:
        """Return [B, N, k]: each patch's most similar neighbours, most similar first."""
        rows, columns = grid_of(tokens.shape[1], self.spec.grids)
        around = neighbourhood(rows, columns, wraparound=self.spec.reference_wraparound)
        around = Neighbours(around.patch.to(tokens.device), around.valid.to(tokens.device))
        return most_similar(tokens, around, self.spec.neighbours)


def grid_of(patches: int, grids: Sequence[tuple[int, int]] = ()) -> tuple[int, int]:
    """Return (rows, columns) of `patches` tokens: the one of `grids` with as many, otherwise a square grid."""
    side = math.isqrt(patches)
    found = next((grid for grid in grids if grid[0] * grid[1] == patches), (side, side))
    if found[0] * found[1] != patches:
        raise OptionsError(
            f"SelfPatch needs square views, got {patches} patches; list the rows and columns of other views in the "
            "head's grids."
        )
    return found


def neighbourhood(rows: int, columns: int, *, wraparound: bool) -> Neighbours:
    """Return [N, 8]: the 3 x 3 neighbourhood of each patch of a rows x columns grid without itself, row by row."""
    steps = torch.tensor([(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if (dy, dx) != (0, 0)])  # [8, 2]
    down, across = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    there = torch.stack([down.flatten(), across.flatten()], dim=1)[:, None] + steps  # [N, 8, 2]
    sides = torch.tensor([rows, columns])
    inside = ((there >= 0) & (there < sides)).all(dim=2)
    wrapped = there % sides
    valid = torch.ones_like(inside) if wraparound else inside
    return Neighbours(wrapped[..., 0] * columns + wrapped[..., 1], valid)


def most_similar(tokens: Tensor, around: Neighbours, count: int) -> Neighbours:
    """Return [B, N, count]: the candidates among `around` [N, M] with the largest cosine similarity to the patch."""
    with full_precision(tokens):  # bfloat16 cannot distinguish similar neighbours
        unit = F.normalize(at_least_float32(tokens), dim=2)  # [B, N, C]
        similarity = torch.einsum("bnc,bnmc->bnm", unit, unit[:, around.patch])
    similarity = similarity.masked_fill(~around.valid, -torch.inf)
    order = similarity.topk(count, dim=2).indices  # [B, N, count]
    patch = around.patch.expand(len(tokens), -1, -1).gather(2, order)
    return Neighbours(patch, around.valid.expand(len(tokens), -1, -1).gather(2, order))


class Aggregation(nn.Module):
    """A learned class token that attends to groups of patches in class-attention blocks, and the final norm."""

    def __init__(self, channels: int, spec: SelfPatchHeadSpec) -> None:
        super().__init__()
        heads = channels // spec.head_channels
        self.cls_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, channels), std=0.02))
        self.blocks = nn.ModuleList(ClassAttentionBlock(channels, heads, spec.mlp_ratio) for _ in range(spec.blocks))
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        init_truncated_normal(self.blocks, spec.init_std)

    def forward(self, tokens: Tensor, groups: Neighbours | None = None) -> Tensor:
        """Return [B, G, C]: the normalised class token of each group; None uses all patches as one group (G = 1)."""
        count = 1 if groups is None else groups.patch.shape[1]
        cls = self.cls_token.expand(len(tokens), count, -1)  # [B, G, C]
        for block in self.blocks:
            cls = block(cls, tokens, groups)
        normed: Tensor = self.norm(cls)
        return normed


class ClassAttentionBlock(nn.Module):
    """Pre-norm block in which class tokens attend to themselves and their group's patches; patches do not change."""

    def __init__(self, channels: int, heads: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels, eps=1e-6)
        self.attn = ClassAttention(channels, heads)
        self.norm2 = nn.LayerNorm(channels, eps=1e-6)
        self.mlp = Perceptron(channels, round(mlp_ratio * channels))

    def forward(self, cls: Tensor, tokens: Tensor, groups: Neighbours | None) -> Tensor:
        """Return the class tokens [B, G, C] after this block."""
        cls = cls + self.attn(self.norm1(cls), self.norm1(tokens), groups)
        after: Tensor = cls + self.mlp(self.norm2(cls))
        return after


class ClassAttention(nn.Module):
    """Attention of class tokens [B, G, C] to themselves and to their group of tokens [B, N, C] -> [B, G, C]."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(channels, channels) for _ in range(3))
        self.proj = nn.Linear(channels, channels)

    def forward(self, cls: Tensor, tokens: Tensor, groups: Neighbours | None) -> Tensor:
        q = self.q(cls) * (cls.shape[-1] // self.heads) ** -0.5
        keys, values = (
            torch.cat([of(cls)[:, :, None], _members(of(tokens), groups)], dim=2) for of in (self.k, self.v)
        )
        q, keys, values = (x.unflatten(-1, (self.heads, -1)) for x in (q, keys, values))
        logits = torch.einsum("bghd,bgmhd->bghm", q, keys)
        if groups is not None:
            itself = groups.valid.new_ones(*groups.valid.shape[:2], 1)
            logits = logits.masked_fill(~torch.cat([itself, groups.valid], dim=2)[:, :, None], -torch.inf)
        mixed = torch.einsum("bghm,bgmhd->bghd", logits.softmax(dim=-1).to(values.dtype), values)
        output: Tensor = self.proj(mixed.flatten(2))
        return output


def _members(tokens: Tensor, groups: Neighbours | None) -> Tensor:
    """Return [B, G, M, C]: the tokens [B, N, C] of each group."""
    if groups is None:
        return tokens[:, None]
    batch = torch.arange(len(tokens), device=tokens.device)[:, None, None]
    return tokens[batch, groups.patch]


class Perceptron(nn.Module):
    """The MLP of a transformer block."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        output: Tensor = self.fc2(F.gelu(self.fc1(tokens)))
        return output
