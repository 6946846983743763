"""The head of terms that compare unchanged features; it has no weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from dovetail.heads.base import HeadSpec, Kind


@dataclass(frozen=True)
class RawHeadSpec(HeadSpec):
    """Returns maps [B, C, H, W] or tokens [B, N, C] unchanged."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return ("map", "tokens")

    def build(self, channels: int) -> nn.Module:
        return nn.Identity()
