"""Converts encoder names to those of detectron2, the mm libraries and Ultralytics (the inverse of `spellings`).

ResNets and feature pyramids are in `dovetail.networks.names`. Sources: detectron2's `modeling/backbone/swin.py` and
`vit.py`, mmpretrain's `convnext.py` and `swin_transformer.py`, mmsegmentation's `vit.py`, the official ConvNeXt code,
and the class TorchVision in Ultralytics' `nn/modules/block.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from dovetail.networks.names import detectron2_encoder, is_resnet
from dovetail.networks.parts import local_name
from dovetail.weights.spellings import Replacement, plain_merging

Family = Literal["ResNet", "ConvNeXt", "Swin", "ViT"]
Rules = Sequence[tuple[str, Replacement]]

_OWN_CONVNEXT: Rules = (
    (r"^stem\.", "downsample_layers.0."),
    (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
    (r"^stages\.(\d)\.blocks\.", r"stages.\1."),
    (r"\.conv_dw\.", ".dwconv."),
    (r"\.mlp\.fc([12])\.", r".pwconv\1."),
    (r"\.mlp\.grn\.weight$", ".grn.gamma"),
    (r"\.mlp\.grn\.bias$", ".grn.beta"),
)
_OWN_SWIN: Rules = (
    (r"^layers\.(\d)\.downsample\.", lambda found: f"layers.{int(found[1]) - 1}.downsample."),
    (r"^norm\.", "norm3."),  # the deepest stage; the other stages have their own norms
)
_MM_FFN: Rules = (
    (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."),
    (r"^patch_embed\.proj\.", "patch_embed.projection."),
)

RULES: Mapping[tuple[str, Family], Rules] = {
    ("detectron2", "ConvNeXt"): _OWN_CONVNEXT,
    ("detectron2", "Swin"): _OWN_SWIN,
    ("detectron2", "ViT"): (),
    ("mmseg", "ResNet"): (),
    ("mmseg", "ConvNeXt"): (
        *_OWN_CONVNEXT,
        (r"\.dwconv\.", ".depthwise_conv."),
        (r"\.pwconv([12])\.", r".pointwise_conv\1."),
    ),
    ("mmseg", "Swin"): (
        *_OWN_SWIN,
        (r"^layers\.", "stages."),
        (r"\.attn\.", ".attn.w_msa."),
        *_MM_FFN,
    ),
    ("mmseg", "ViT"): (
        (r"^blocks\.(\d+)\.norm([12])\.", r"layers.\1.ln\2."),
        (r"^blocks\.", "layers."),
        (r"\.attn\.qkv\.", ".attn.attn.in_proj_"),
        (r"\.attn\.proj\.", ".attn.attn.out_proj."),
        *_MM_FFN,
        (r"^norm\.", "ln1."),
    ),
    ("ultralytics", "ResNet"): (
        (r"^conv1\.", "0."),
        (r"^bn1\.", "1."),
        (r"^layer(\d)\.", lambda found: f"{int(found[1]) + 3}."),
    ),
}


def family_of(names: Sequence[str]) -> Family | None:
    """Return the family of the encoder with these local names, or None for others."""
    if is_resnet(list(names)):
        return "ResNet"
    plain = {local_name(name) for name in names}
    if "stem.0.weight" in plain and "stages.0.blocks.0.conv_dw.weight" in plain:
        return "ConvNeXt"
    if "layers.0.blocks.0.attn.relative_position_bias_table" in plain:
        return "Swin"
    return "ViT" if {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "pos_embed"} <= plain else None


def encoder_for(format: str, encoder: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Rename an encoder's tensors to a library's names within its backbone. None if the encoder is unsupported.

    Args:
        format: "detectron2", "mmseg" or "ultralytics".
        encoder: Tensors by local name.
    """
    family = family_of(list(encoder))
    if format == "detectron2" and family == "ResNet":
        return {detectron2_encoder(name): value for name, value in encoder.items()}
    if family is None or (format, family) not in RULES:
        return None
    named = {}
    for name, value in encoder.items():
        plain = local_name(name)
        if format == "mmseg" and family == "Swin":
            value = plain_merging(plain, value, back=True)
        for pattern, replacement in RULES[format, family]:
            plain = re.sub(pattern, replacement, plain)
        named[plain] = value
    if (format, family) == ("detectron2", "ViT"):  # ViTDet has no class token and no norm after its blocks
        return {name: value for name, value in named.items() if name.startswith(("patch_embed", "blocks", "pos_embed"))}
    return named


def body_prefix(format: str, family: Family | None, *, pyramid: bool) -> str:
    """Return the prefix of the backbone in a library's models."""
    if format == "ultralytics":
        return "model.0.m."
    if format == "mmseg":
        return "backbone."
    inner = "bottom_up." if pyramid else ""
    return f"backbone.{'net.' if family == 'ViT' and not pyramid else inner}"
