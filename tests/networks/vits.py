"""Tiny ViTs of every kind that is taken, and views for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import ParallelScalingBlock, ResPostBlock, VisionTransformer
from torch import nn

from dovetail.networks.vit import ViTNetwork, build_vit
from dovetail.views.view import View

PATCH = 8
SIDE = 32

tiny_vit = partial(
    VisionTransformer,
    img_size=SIDE,
    patch_size=PATCH,
    embed_dim=48,
    depth=3,
    num_heads=3,
    num_classes=0,
    dynamic_img_size=True,
)
tiny_eva = partial(
    Eva,
    img_size=SIDE,
    patch_size=PATCH,
    embed_dim=48,
    depth=3,
    num_heads=3,
    num_classes=0,
    dynamic_img_size=True,
)

MODELS: dict[str, Callable[..., nn.Module]] = {
    "plain": tiny_vit,
    "no_class_token": partial(tiny_vit, class_token=False, global_pool="avg"),
    "norm_after_pooling": partial(tiny_vit, global_pool="avg"),
    "map_pooling": partial(tiny_vit, class_token=False, global_pool="map"),
    "registers": partial(tiny_vit, reg_tokens=2, no_embed_class=True),
    "layer_scale": partial(tiny_vit, init_values=0.1),
    "qk_norm": partial(tiny_vit, qk_norm=True, scale_attn_norm=True),
    "pre_norm": partial(tiny_vit, pre_norm=True),
    "post_norm": partial(tiny_vit, block_fn=ResPostBlock, init_values=0.1),
    "no_positions": partial(tiny_vit, pos_embed="none"),
    "eva": tiny_eva,
    "eva_rope": partial(tiny_eva, use_rot_pos_emb=True, swiglu_mlp=True, scale_mlp=True, init_values=0.1),
    "eva_unfused": partial(tiny_eva, use_rot_pos_emb=True, qkv_fused=False, num_reg_tokens=2, scale_attn_inner=True),
    "eva_post_norm": partial(tiny_eva, use_post_norm=True),
    "dinov3": partial(
        tiny_eva,
        use_abs_pos_emb=False,
        use_rot_pos_emb=True,
        rope_type="dinov3",
        rope_rotate_half=True,
        attn_type="rope",
        init_values=0.1,
        num_reg_tokens=4,
    ),
    "rope_mixed": partial(tiny_eva, use_rot_pos_emb=True, rope_type="mixed", use_abs_pos_emb=False),
    "grouped_queries": partial(tiny_eva, attn_type="rope", qkv_fused=False, num_kv_heads=1, use_rot_pos_emb=True),
}
UNKNOWN_BLOCKS = partial(tiny_vit, block_fn=ParallelScalingBlock)


def network(name: str = "plain", *, seed: int = 0, **options: Any) -> ViTNetwork:
    """Return a tiny ViT whose every parameter is away from its start, in evaluation mode."""
    torch.manual_seed(seed)
    net = build_vit(MODELS[name](**options))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return net.eval()  # type: ignore[no-any-return]


def view(
    *, batch: int = 2, queries: int = 3, side: int = SIDE, seed: int = 0, dtype: torch.dtype = torch.float32
) -> View:
    """Return a view with query patches whose crops lie anywhere in the image."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(batch, queries, 2, generator=generator) * 0.7
    return View(
        pixels=torch.randn(batch, 3, side, side, generator=generator).to(dtype),
        box=torch.tensor([[0.1, 0.2, 0.8, 0.9]]).repeat(batch, 1),
        flipped=torch.arange(batch) % 2 == 1,
        source_px=torch.full((batch, 2), 200.0),
        queries=torch.randn(batch, queries, 3, PATCH, PATCH, generator=generator).to(dtype),
        query_box=torch.cat([corner, corner + 0.3], dim=2),
    )
