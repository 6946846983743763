"""Unfused attention on CPUs, where the fused kernel is slow.

In bfloat16 on a CPU, ViTs train faster with the three plain operations than with torch's fused attention
(`python -m benchmarks.speed.attention` measures the difference). The plain form stores T x T weights per head for the
backward pass, so long sequences still use the fused kernel.
"""

from __future__ import annotations

from timm.layers.attention import Attention, AttentionRope
from timm.models.eva import Eva, EvaAttention
from timm.models.vision_transformer import VisionTransformer
from torch import nn

MAX_TOKENS = 256  # 4 MB of weights per image and block with 6 heads, in both number formats


def prefer_plain_attention(network: nn.Module, *, side_px: int) -> int:
    """Use unfused attention in the ViTs of `network` if images of `side_px` have at most `MAX_TOKENS` patches.

    The weights do not change, and results equal those of the fused kernel up to rounding. Returns the number of changed
    attention modules.
    """
    changed = 0
    for vit in network.modules():
        if not isinstance(vit, (VisionTransformer, Eva)) or patches(vit, side_px) > MAX_TOKENS:
            continue
        for module in vit.modules():
            if isinstance(module, (Attention, AttentionRope, EvaAttention)):
                changed += bool(module.fused_attn)
                module.fused_attn = False  # type: ignore[misc]  # only final for TorchScript
    return changed


def patches(vit: VisionTransformer | Eva, side_px: int) -> int:
    """Return the number of patches of a square image of `side_px`."""
    height, width = vit.patch_embed.patch_size
    return int((side_px // height) * (side_px // width))
