"""Attention by hand where a processor is slow at the fused kernel.

In bfloat16 on a processor, whole ViTs train faster with the plain three operations than with torch's fused attention
(`python -m benchmarks.speed.attention` measures by how much). The plain form keeps T x T weights of every head for
the backward pass, so long sequences stay with the fused one.
"""

from __future__ import annotations

from timm.layers.attention import Attention, AttentionRope
from timm.models.eva import Eva, EvaAttention
from timm.models.vision_transformer import VisionTransformer
from torch import nn

MAX_TOKENS = 256  # 4 MB of weights an image and block, of 6 heads, in both number formats


def prefer_plain_attention(network: nn.Module, *, side_px: int) -> int:
    """Have the ViTs in `network` attend by hand where images of `side_px` give at most `MAX_TOKENS` patches.

    The weights stay as they are, and results equal the fused kernel's up to rounding. Returns the number of attentions
    that were changed.
    """
    changed = 0
    for vit in network.modules():
        if not isinstance(vit, (VisionTransformer, Eva)) or patches(vit, side_px) > MAX_TOKENS:
            continue
        for module in vit.modules():
            if isinstance(module, (Attention, AttentionRope, EvaAttention)):
                changed += bool(module.fused_attn)
                module.fused_attn = False  # type: ignore[misc]  # final for TorchScript alone
    return changed


def patches(vit: VisionTransformer | Eva, side_px: int) -> int:
    """Return how many patches a square image of `side_px` has."""
    height, width = vit.patch_embed.patch_size
    return int((side_px // height) * (side_px // width))
