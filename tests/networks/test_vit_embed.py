"""Masks replace patches, queries are patches without a place, and mistakes are told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from dovetail.errors import DovetailError
from dovetail.networks.vit import build_vit
from dovetail.networks.vit_embed import embed, query_centres
from dovetail.recipe import NetworkRules, QueryRule
from dovetail.recipes.table import build
from dovetail.train.learner import Learner
from tests.networks.vits import PATCH, SIDE, network, tiny_vit, view

CELLS = SIDE // PATCH
TINY = {"image_size": SIDE, "local_size": 16, "hidden": 8, "bottleneck": 4, "prototypes": 6}


def test_masked_patches_become_the_token_before_positions() -> None:
    net, seen = network(), view()
    mask = torch.rand(2, CELLS, CELLS, generator=torch.Generator().manual_seed(0)) < 0.4
    vit = net.vit
    patches = vit.patch_embed(seen.pixels)
    patches = torch.where(mask[..., None], net.mask_token, patches)
    expected = vit._pos_embed(patches)
    made = embed(vit, replace(seen, mask=mask), mask_token=net.mask_token, with_queries=False)
    assert torch.equal(made.raw, expected)


@pytest.mark.parametrize("name", ["plain", "eva_rope", "dinov3"])
def test_what_is_masked_is_not_seen(name: str) -> None:
    net, seen = network(name), view()
    mask = torch.zeros(2, CELLS, CELLS, dtype=torch.bool)
    mask[:, 1, 2] = True
    other = seen.pixels.clone()
    other[..., PATCH : 2 * PATCH, 2 * PATCH : 3 * PATCH] += 1
    seen = replace(seen, mask=mask)
    outputs = [net(replace(seen, pixels=pixels), ["patches", "queries"]) for pixels in (seen.pixels, other)]
    for tap in ("patches", "queries"):
        assert torch.equal(outputs[0][tap], outputs[1][tap])
    assert not torch.equal(outputs[0]["patches"], net(seen.without_mask(), ["patches"])["patches"])


def test_a_fixed_size_model_takes_masks_and_its_own_size_only() -> None:
    net = build_vit(tiny_vit(dynamic_img_size=False)).eval()
    seen = replace(view(), mask=torch.ones(2, CELLS, CELLS, dtype=torch.bool))
    assert net(seen, ["patches"])["patches"].shape == (2, CELLS * CELLS, 48)
    with pytest.raises(DovetailError, match="expects 32 x 32 pixels, got 48 x 48; build it with dynamic_img_size"):
        net(view(side=48), ["patches"])


def test_a_query_that_is_a_patch_embeds_as_that_patch() -> None:
    net, seen = network(), view()
    cut = seen.pixels[:, None, :, 8:16, 16:24]
    made = embed(net.vit, replace(seen, queries=cut), mask_token=None, with_queries=True)
    patch = net.vit.patch_embed(seen.pixels)[:, 1, 2]
    assert made.queries is not None
    torch.testing.assert_close(made.queries[:, 0], patch, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["plain", "registers"])
def test_positions_of_queries_are_those_of_the_patches_under_them(name: str) -> None:
    net = network(name)
    # A view of the whole image, and a query whose crop is centred on its patch in row 1, column 2.
    seen = replace(
        view(batch=1, queries=1),
        box=torch.tensor([[0.0, 0.0, 1.0, 1.0]]),
        query_box=torch.tensor([[[0.5, 0.25, 0.75, 0.5]]]),
    )
    made = [
        embed(net.vit, seen, mask_token=None, with_queries=True, rule=QueryRule(positions=positions)).queries
        for positions in ("crop", "none")
    ]
    assert made[0] is not None
    assert made[1] is not None
    grid = net.vit.pos_embed[0, -CELLS * CELLS :]
    torch.testing.assert_close((made[0] - made[1])[0, 0], grid[1 * CELLS + 2], rtol=1e-5, atol=1e-5)


def test_centres_are_mirrored_where_the_view_is_and_kept_inside() -> None:
    seen = replace(
        view(batch=2, queries=2),
        box=torch.tensor([[0.5, 0.0, 1.0, 0.5]]).repeat(2, 1),
        query_box=torch.tensor([[0.5, 0.1, 0.7, 0.3], [0.0, 0.6, 0.2, 0.8]]).repeat(2, 1, 1),
        flipped=torch.tensor([False, True]),
    )
    centres = query_centres(seen)
    torch.testing.assert_close(centres[0], torch.tensor([[0.2, 0.4], [0.0, 1.0]]))
    torch.testing.assert_close(centres[1], torch.tensor([[0.8, 0.4], [1.0, 1.0]]))


@pytest.mark.parametrize("name", ["plain", "eva_rope", "dinov3", "rope_mixed"])
def test_positions_change_queries_and_nothing_else(name: str) -> None:
    net, seen = network(name), view()
    plain = net(seen, ["patches", "queries"])
    net = net.following(NetworkRules(query_rule=QueryRule(positions="crop")))
    placed = net(seen, ["patches", "queries"])
    assert torch.equal(placed["patches"], plain["patches"])
    assert not torch.allclose(placed["queries"], plain["queries"], atol=1e-4)


def test_mistakes_are_told() -> None:
    net, seen = network(), view()
    with pytest.raises(DovetailError, match="mask has 2 x 2 cells, but the view has 4 x 4 patches"):
        net(replace(seen, mask=torch.zeros(2, 2, 2, dtype=torch.bool)), ["patches"])
    with pytest.raises(DovetailError, match="needs query patches, but the view has none"):
        net(replace(seen, queries=None), ["queries"])
    with pytest.raises(DovetailError, match="Queries have 16 x 16 pixels, but the model's patches 8 x 8"):
        net(replace(seen, queries=torch.zeros(2, 1, 3, 16, 16)), ["queries"])
    with pytest.raises(DovetailError, match="patches of 8 px, got an image of 36 x 36"):
        net(view(side=36), ["patches"])
    net = net.following(NetworkRules(query_rule=QueryRule(positions="crop")))
    with pytest.raises(DovetailError, match="need the boxes of queries"):
        net(replace(seen, query_box=None), ["queries"])


def official_forward(vit: VisionTransformer, pixels: Tensor) -> Tensor:
    """A ViT's normalised tokens by DINO's published forward pass, on timm's weights."""
    batch, patch = len(pixels), vit.patch_embed.patch_size[0]
    height, width = (side // patch for side in pixels.shape[2:])
    side = round((vit.pos_embed.shape[1] - 1) ** 0.5)
    tokens = F.conv2d(pixels, vit.patch_embed.proj.weight, vit.patch_embed.proj.bias, stride=patch)
    tokens = torch.cat([vit.cls_token.expand(batch, -1, -1), tokens.flatten(2).transpose(1, 2)], dim=1)
    positions = vit.pos_embed
    if (height, width) != (side, side):
        grid = positions[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        factors = ((height + 0.1) / side, (width + 0.1) / side)
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic")
        positions = torch.cat([positions[:, :1], grid.permute(0, 2, 3, 1).reshape(1, height * width, -1)], dim=1)
    tokens = tokens + positions
    for block in vit.blocks:
        heads = block.attn.num_heads
        normed = F.layer_norm(tokens, tokens.shape[-1:], block.norm1.weight, block.norm1.bias, 1e-6)
        qkv = F.linear(normed, block.attn.qkv.weight, block.attn.qkv.bias)
        q, k, v = qkv.reshape(batch, -1, 3, heads, tokens.shape[-1] // heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)
        mixed = (weights @ v).transpose(1, 2).reshape(tokens.shape)
        tokens = tokens + F.linear(mixed, block.attn.proj.weight, block.attn.proj.bias)
        normed = F.layer_norm(tokens, tokens.shape[-1:], block.norm2.weight, block.norm2.bias, 1e-6)
        hidden = F.gelu(F.linear(normed, block.mlp.fc1.weight, block.mlp.fc1.bias))
        tokens = tokens + F.linear(hidden, block.mlp.fc2.weight, block.mlp.fc2.bias)
    return F.layer_norm(tokens, tokens.shape[-1:], vit.norm.weight, vit.norm.bias, 1e-6)


@pytest.mark.parametrize("sides", [(SIDE, SIDE), (16, 16), (24, 24), (48, 48), (16, 24)])
def test_the_whole_forward_of_a_dino_run_is_the_official_one(sides: tuple[int, int]) -> None:
    torch.manual_seed(0)
    network = build_vit(tiny_vit()).double()
    learner = Learner(build("dino", network.taps, TINY), network)
    network = learner.student.network
    pixels = torch.randn(2, 3, *sides, dtype=torch.float64)
    seen = replace(view(), pixels=pixels)
    expected = official_forward(network.vit, pixels)
    found = network(seen, ["cls", "patches"])
    torch.testing.assert_close(found["cls"], expected[:, 0])
    torch.testing.assert_close(found["patches"], expected[:, 1:])


def test_timms_positions_are_kept_where_asked_for_and_by_other_methods() -> None:
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, 16, 16)
    for method, options in (("dino", {"reference_timm_positions": True}), ("byol", {})):
        network = build_vit(tiny_vit())
        sizes = TINY if method == "dino" else {"image_size": SIDE}
        learner = Learner(build(method, network.taps, sizes | options), network)
        vit = learner.student.network.vit
        found = learner.student.network(replace(view(), pixels=pixels), ["patches"])["patches"]
        torch.testing.assert_close(found, vit.forward_features(pixels)[:, 1:])


@pytest.mark.parametrize(
    "options", [{"no_embed_class": True}, {"reg_tokens": 2}, {"class_token": False, "global_pool": "avg"}]
)
def test_official_positions_leave_the_native_size_as_it_is(options: dict[str, Any]) -> None:
    vit = tiny_vit(**options)
    common: dict[str, Any] = {"mask_token": None, "with_queries": False}
    plain, official = (embed(vit, view(), official_positions=one, **common).raw for one in (False, True))
    assert torch.equal(plain, official)
    small = replace(view(), pixels=torch.randn(2, 3, 16, 16))
    plain, official = (embed(vit, small, official_positions=one, **common).raw for one in (False, True))
    assert plain.shape == official.shape
    assert not torch.allclose(plain, official)
