"""The head of terms that compare features as the network gives them: no weights, so nothing for the teacher to copy."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from dovetail.heads.base import HeadSpec, Kind


@dataclass(frozen=True)
class RawHeadSpec(HeadSpec):
    """Maps [B, C, H, W] or tokens [B, N, C] pass unchanged."""

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return ("map", "tokens")

    def build(self, channels: int) -> nn.Module:
        return nn.Identity()
