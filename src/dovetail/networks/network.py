"""The contract of networks: a view in, a dictionary of named taps out.

Names of taps say the stride: `c2`..`c5` are encoder maps and `p0`..`p5` decoder maps at strides 2**0..2**5. `out` is
another name for the decoder's finest map. A ViT has `cls` (vector), `patches` (tokens), `queries` (tokens).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection

import torch.nn.functional as F
from torch import Tensor, nn

from dovetail.recipe import LateralDropout, Tap
from dovetail.views.view import View


class Network(nn.Module, ABC):
    """A model that answers a view with its taps.

    Attributes:
        model: The user's whole module. Its `state_dict` is what is exported, names unchanged, heads for the
            downstream task included though no term reaches them.
        taps: What it can answer with.
        encoder_prefix: Prefix of encoder parameters in `model.state_dict()`, such as "encoder." (may be "").
        decoder_prefixes: Prefixes of decoder parameters; empty for an encoder alone.
        constructor: The exact Python call that makes `model`, for the example and `model.json`.
        size_multiple: Height and width of the pixels must be a multiple of this.
        lateral_dropout: Set by a recipe; applied in `drop_laterals`.
    """

    model: nn.Module
    taps: dict[str, Tap]
    encoder_prefix: str
    decoder_prefixes: tuple[str, ...]
    constructor: str
    size_multiple: int = 32
    lateral_dropout: LateralDropout | None = None

    @abstractmethod
    def forward(self, view: View, taps: Collection[str]) -> dict[str, Tensor]:
        """Return the named taps for a view, computing nothing that they do not need."""

    def drop_laterals(self, laterals: list[Tensor]) -> list[Tensor]:
        """Apply `lateral_dropout` to decoder inputs, finest first; the last one, the deepest, is never dropped.

        Active in the teacher as in the student, as in DeCon's code.
        """
        rule = self.lateral_dropout
        if rule is None or rule.p == 0:
            return laterals
        return [drop_lateral(lateral, rule) for lateral in laterals[:-1]] + laterals[-1:]


def drop_lateral(lateral: Tensor, rule: LateralDropout) -> Tensor:
    """Return one lateral [B, C, H, W] with channels dropped, or the whole of it."""
    if rule.kind == "channel":
        return F.dropout2d(lateral, rule.p, training=True)
    keep = (lateral.new_empty(()).uniform_() >= rule.p).to(lateral.dtype)  # one coin for the batch
    return lateral * keep
