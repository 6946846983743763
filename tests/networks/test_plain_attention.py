from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from dovetail.networks.plain_attention import MAX_TOKENS, patches, prefer_plain_attention


def vit(name: str, **options: object) -> nn.Module:
    """Return a small ViT whose attention is fused."""
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=0, **options).eval()
    for module in model.modules():
        if isinstance(getattr(module, "fused_attn", None), bool):
            module.fused_attn = True
    return model


@pytest.mark.parametrize(
    ("name", "side", "options"),
    [
        ("test_vit", 64, {"depth": 2, "dynamic_img_size": True}),
        ("eva02_tiny_patch14_224", 56, {"depth": 2, "img_size": 56}),
        ("vit_small_patch16_rope_224", 64, {"depth": 2, "img_size": 64}),
    ],
)
def test_results_stay_as_they_are(name: str, side: int, options: dict[str, object]) -> None:
    model = vit(name, **options)
    images = torch.randn(2, 3, side, side)
    before = model(images)
    assert prefer_plain_attention(nn.ModuleList([model]), sizes=[(side, side)]) == 2
    torch.testing.assert_close(model(images), before, rtol=1e-4, atol=1e-5)
    assert prefer_plain_attention(model, sizes=[(side, side)]) == 0  # nothing is left to change


def test_long_sequences_stay_fused() -> None:
    model = vit("test_vit", dynamic_img_size=True)
    side = 16 * 20
    assert patches(model, side, side) > MAX_TOKENS  # type: ignore[arg-type]
    assert prefer_plain_attention(model, sizes=[(side, side)]) == 0


def test_other_networks_are_left_alone() -> None:
    assert prefer_plain_attention(vit("test_resnet"), sizes=[(64, 64)]) == 0
