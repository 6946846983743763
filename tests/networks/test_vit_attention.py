"""The laws of ADCLR's two streams, on every kind of block that is taken."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from dovetail.networks.vit import ViTNetwork
from dovetail.networks.vit_attention import Rotations, attention_weights, takes_queries
from dovetail.recipe import NetworkRules, QueryRule
from dovetail.views.view import View
from tests.networks.vits import MODELS, PATCH, UNKNOWN_BLOCKS, network, view

all_models = pytest.mark.parametrize("name", MODELS)


def queries_of(net: ViTNetwork, seen: View) -> Tensor:
    """Return the queries' tap [B, S, C]."""
    return net(seen, ["queries"])["queries"]


@all_models
@pytest.mark.parametrize("positions", ["none", "crop"])
def test_raw_tokens_are_timms_own_to_the_last_bit(name: str, positions: Any) -> None:
    net, seen = network(name), view()
    net = net.following(NetworkRules(query_rule=QueryRule(positions=positions)))
    with torch.no_grad():
        with_queries = net.encode(seen, with_queries=True).raw
        without = net.encode(seen, with_queries=False).raw
        assert torch.equal(with_queries, without)
        assert torch.equal(net.vit.norm(with_queries), net.vit.forward_features(seen.pixels))


@all_models
def test_raw_tokens_are_timms_own_without_the_fused_kernel(name: str) -> None:
    net, seen = network(name), view()
    for block in net.vit.blocks:
        block.attn.fused_attn = False
    with torch.no_grad():
        ours = net.encode(seen, with_queries=True)
        assert torch.equal(net.vit.norm(ours.raw), net.vit.forward_features(seen.pixels))


@pytest.mark.parametrize("name", ["plain", "layer_scale", "post_norm", "eva_rope"])
def test_stochastic_depth_draws_the_same_with_and_without_queries(name: str) -> None:
    net, seen = network(name, drop_path_rate=0.5).train(), view(batch=6)
    states = []
    outputs = []
    for with_queries in (True, False):
        torch.manual_seed(5)
        outputs.append(net.encode(seen, with_queries=with_queries).raw)
        states.append(torch.get_rng_state())
    assert torch.equal(*outputs)
    assert torch.equal(*states)
    assert not torch.equal(outputs[0], net.encode(seen, with_queries=False).raw)  # it does drop


def test_stochastic_depth_drops_both_streams_of_an_image_together() -> None:
    net, seen = network(drop_path_rate=0.5).train(), view(batch=8)
    for block in net.vit.blocks[:-1]:
        block.drop_path1, block.drop_path2 = torch.nn.Identity(), torch.nn.Identity()
    net.vit.blocks[-1].drop_path1.drop_prob = net.vit.blocks[-1].drop_path2.drop_prob = 0.7
    tokens: dict[str, tuple[Tensor, Tensor]] = {}
    last = net.vit.blocks[-1]
    net.vit.blocks = net.vit.blocks[:-1]
    before = net.encode(seen, with_queries=True)
    net.vit.blocks.append(last)
    torch.manual_seed(3)
    after = net.encode(seen, with_queries=True)
    assert before.queries is not None
    assert after.queries is not None
    tokens["raw"], tokens["queries"] = (before.raw, after.raw), (before.queries, after.queries)
    unchanged = {kind: (a == b).flatten(1).all(dim=1) for kind, (a, b) in tokens.items()}
    assert torch.equal(unchanged["raw"], unchanged["queries"])
    assert 0 < int(unchanged["raw"].sum()) < 8


@all_models
def test_permuting_queries_permutes_their_outputs(name: str) -> None:
    net, seen, order = network(name).double(), view(dtype=torch.float64), torch.tensor([2, 0, 1])
    assert seen.queries is not None
    shuffled = replace(seen, queries=seen.queries[:, order])
    torch.testing.assert_close(queries_of(net, shuffled), queries_of(net, seen)[:, order], rtol=1e-10, atol=1e-10)


@all_models
def test_a_query_knows_nothing_of_the_others(name: str) -> None:
    net, seen = network(name), view()
    assert seen.queries is not None
    pixels = seen.queries.clone().requires_grad_()
    output = queries_of(net, replace(seen, queries=pixels))
    (output[:, 1] * torch.randn_like(output[:, 1])).sum().backward()
    assert pixels.grad is not None
    assert torch.equal(pixels.grad[:, [0, 2]], torch.zeros_like(pixels.grad[:, [0, 2]]))
    assert pixels.grad[:, 1].abs().sum() > 0


@all_models
def test_no_gradient_reaches_queries_from_raw_tokens(name: str) -> None:
    net, seen = network(name), view()
    assert seen.queries is not None
    pixels = seen.queries.clone().requires_grad_()
    raw = net.encode(replace(seen, queries=pixels), with_queries=True).raw
    assert torch.autograd.grad(raw.square().sum(), pixels, allow_unused=True)[0] is None


@all_models
def test_a_query_hears_the_raw_tokens(name: str) -> None:
    net, seen = network(name), view()
    pixels = seen.pixels.clone().requires_grad_()
    output = queries_of(net, replace(seen, pixels=pixels))
    (output * torch.randn_like(output)).sum().backward()
    assert pixels.grad is not None
    # The whole picture is heard: there is no patch without influence.
    assert (torch.nn.functional.avg_pool2d(pixels.grad.abs(), 8) > 0).all()


def dense_mask(raw: int, queries: int, attention: str) -> Tensor:
    """Return [T + S, T + S] bool: what may attend (rows) to what (columns)."""
    allowed = torch.ones(raw + queries, raw + queries, dtype=torch.bool)
    if attention != "bidirectional":
        allowed[:raw, raw:] = False
    if attention == "unidirectional":
        allowed[raw:, raw:] = torch.eye(queries, dtype=torch.bool)
    return allowed


@pytest.mark.parametrize("attention", ["unidirectional", "query_to_query", "bidirectional"])
@pytest.mark.parametrize("name", ["plain", "layer_scale", "qk_norm", "post_norm"])
@pytest.mark.parametrize("fused", [True, False])
def test_equals_timms_blocks_under_the_dense_mask(name: str, attention: Any, fused: bool) -> None:
    net, seen = network(name).double(), view(dtype=torch.float64)
    net = net.following(NetworkRules(query_rule=QueryRule(attention=attention)))
    for block in net.vit.blocks:
        block.attn.fused_attn = fused
    vit: VisionTransformer = net.vit
    raw = vit.norm_pre(vit._pos_embed(vit.patch_embed(seen.pixels)))
    assert seen.queries is not None
    queries = vit.patch_embed.proj(seen.queries.flatten(0, 1)).flatten(1).reshape(2, 3, -1)
    joint = torch.cat([raw, vit.norm_pre(queries)], dim=1)
    mask = dense_mask(raw.shape[1], 3, attention)
    for block in vit.blocks:
        joint = block(joint, attn_mask=mask)
    ours = net.encode(seen, with_queries=True)
    assert ours.queries is not None
    torch.testing.assert_close(ours.raw, joint[:, :-3], rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(ours.queries, joint[:, -3:], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["eva_rope", "dinov3", "rope_mixed", "grouped_queries"])
def test_bidirectional_attention_with_rope_changes_the_raw_tokens(name: str) -> None:
    net, seen = network(name), view()
    plain = net.encode(seen, with_queries=False).raw
    net = net.following(NetworkRules(query_rule=QueryRule(attention="bidirectional", positions="crop")))
    assert not torch.allclose(net.encode(seen, with_queries=True).raw, plain, atol=1e-4)


@pytest.mark.parametrize("name", ["plain", "eva_rope"])
def test_bfloat16_keeps_raw_tokens_and_stays_close(name: str) -> None:
    net, seen = network(name), view()
    exact = queries_of(net, seen)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        ours = net.encode(seen, with_queries=True)
        assert torch.equal(net.vit.norm(ours.raw), net.vit.forward_features(seen.pixels))
        torch.testing.assert_close(queries_of(net, seen).float(), exact, rtol=0.1, atol=0.15)


def test_unknown_blocks_offer_no_queries() -> None:
    assert not any(takes_queries(block) for block in UNKNOWN_BLOCKS().blocks)  # type: ignore[union-attr]


def wide(name: str, side: int = 2, **options: Any) -> tuple[ViTNetwork, View]:
    """Return a ViT whose queries have `side` x `side` tokens, in double precision, and a view for it."""
    net, seen = network(name, **options).double(), view(dtype=torch.float64)
    net = net.following(NetworkRules(query_rule=QueryRule(tokens_per_side=side)))
    generator = torch.Generator().manual_seed(1)
    assert seen.queries is not None
    shape = (*seen.queries.shape[:3], PATCH * side, PATCH * side)
    return net, replace(seen, queries=torch.randn(shape, generator=generator, dtype=torch.float64))


@all_models
def test_laws_of_queries_with_several_tokens(name: str) -> None:
    """Raw tokens stay as they are, permuted queries give permuted outputs, and no gradient goes between queries."""
    net, seen = wide(name)
    assert seen.queries is not None
    encoded = net.encode(seen, with_queries=True)
    assert encoded.queries is not None
    assert encoded.queries.shape[1] == 3 * 4
    assert torch.equal(encoded.raw, net.encode(seen, with_queries=False).raw)
    output, order = queries_of(net, seen), torch.tensor([2, 0, 1])
    assert output.shape[1] == 3
    shuffled = queries_of(net, replace(seen, queries=seen.queries[:, order]))
    torch.testing.assert_close(shuffled, output[:, order], rtol=1e-10, atol=1e-10)
    pixels = seen.queries.clone().requires_grad_()
    output = queries_of(net, replace(seen, queries=pixels))
    (output[:, 1] * torch.randn_like(output[:, 1])).sum().backward()
    assert pixels.grad is not None
    assert not pixels.grad[:, [0, 2]].any()
    each = pixels.grad[:, 1].abs().unflatten(-2, (2, PATCH)).unflatten(-1, (2, PATCH)).sum(dim=(1, 3, 5))
    assert (each > 0).all()  # all four tokens have a part in the vector


@pytest.mark.parametrize("name", ["plain", "layer_scale", "qk_norm", "post_norm"])
def test_queries_with_several_tokens_equal_timms_blocks_under_the_dense_mask(name: str) -> None:
    net, seen = wide(name)
    vit: VisionTransformer = net.vit
    raw = vit.norm_pre(vit._pos_embed(vit.patch_embed(seen.pixels)))
    assert seen.queries is not None
    queries = vit.patch_embed.proj(seen.queries.flatten(0, 1)).flatten(2).transpose(1, 2).reshape(2, 12, -1)
    joint = torch.cat([raw, vit.norm_pre(queries)], dim=1)
    allowed = dense_mask(raw.shape[1], 12, "unidirectional")
    allowed[raw.shape[1] :, raw.shape[1] :] = torch.block_diag(*[torch.ones(4, 4)] * 3).bool()
    for block in vit.blocks:
        joint = block(joint, attn_mask=allowed)
    expected = net.final_norm(joint[:, raw.shape[1] :]).reshape(2, 3, 4, -1).mean(dim=2)
    torch.testing.assert_close(queries_of(net, seen), expected, rtol=1e-9, atol=1e-9)


def test_the_weights_of_a_query_with_several_tokens_sum_to_one() -> None:
    net, seen = wide("plain")
    encoded = net.encode(seen, with_queries=True)
    weights = attention_weights(net.vit.blocks[0], encoded.raw, encoded.queries, Rotations(), group=4).queries
    assert weights.shape[2:] == (3, encoded.raw.shape[1] + 1)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights.sum(-1)))
