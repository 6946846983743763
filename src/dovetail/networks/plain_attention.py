"""Unfused attention on CPUs, where the fused kernel is slow.

In bfloat16 on a CPU, ViTs train faster with the three plain operations than with torch's fused attention
(`python -m benchmarks.speed.attention` measures the difference). The plain form stores T x T weights per head for the
backward pass, so long sequences still use the fused kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

from timm.layers.attention import Attention, AttentionRope
from timm.models.eva import Eva, EvaAttention
from timm.models.vision_transformer import VisionTransformer
from torch import nn

MAX_TOKENS = 256  # 4 MB of weights per image and block with 6 heads, in both number formats


def prefer_plain_attention(network: nn.Module, *, sizes: Sequence[tuple[int, int]]) -> int:
    """Use unfused attention in the ViTs of `network` if no image has more than `MAX_TOKENS` patches.

    `sizes` are (height, width) of the images in pixels. The weights do not change, and results equal those of the fused
    kernel up to rounding. Returns the number of changed attention modules.
    """
    changed = 0
    for vit in network.modules():
        if not isinstance(vit, (VisionTransformer, Eva)) or max(patches(vit, *size) for size in sizes) > MAX_TOKENS:
            continue
        for module in vit.modules():
            if isinstance(module, (Attention, AttentionRope, EvaAttention)):
                changed += bool(module.fused_attn)
                module.fused_attn = False  # type: ignore[misc]  # only final for TorchScript
    return changed


def patches(vit: VisionTransformer | Eva, height: int, width: int) -> int:
    """Return the number of patches of an image of `height` x `width` pixels."""
    down, across = vit.patch_embed.patch_size
    return int((height // down) * (width // across))
