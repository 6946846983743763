"""ADCLR's attention: query tokens next to the raw tokens of a timm ViT block, with the block's own weights.

Paper: Zhang et al., "Patch-Level Contrasting without Patch Correspondence for Accurate and Dense Contrastive
Representation Learning" (ADCLR), ICLR 2023, https://arxiv.org/abs/2306.13337. No official code was ever released.

For raw tokens X [B, T, C] (class and register tokens included) and query tokens Q [B, S, C], with shared norm, q, k, v:

    X' = softmax(q(X) k(X)^T) v(X)                                       the unchanged block, on the fastest kernel
    Q'_i = softmax([q(Q_i) k(X)^T, q(Q_i) k(Q_i)^T]) [v(X); v(Q_i)]      with one logit for the query itself

A query with g tokens has g logits instead of one: its tokens also attend to each other, but not to tokens of other
queries.

This equals a (T+S) x (T+S) mask that hides every query from the raw tokens and the other queries, with S (T+1) logits
instead of (T+S)^2. The raw stream runs the same operations in the same order as timm, so its results are bit-identical.
Stochastic depth draws once per image and drops both streams together, so the raw stream draws the same random numbers
with and without queries.

Shapes: B images, T raw tokens, S query tokens (g for each query, one after the other), C channels, h heads, d channels
of a head.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention, AttentionRope
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, ResPostBlock
from torch import Tensor, nn

QueryAttention = Literal["unidirectional", "bidirectional", "query_to_query"]


class Streams(NamedTuple):
    """Both kinds of token: `raw` [B, T, C] and `queries` [B, S, C]."""

    raw: Tensor
    queries: Tensor


class Rotations(NamedTuple):
    """RoPE's rows (sine, cosine): `raw` for the patches, `queries` for queries with a position; None without RoPE."""

    raw: Tensor | None = None
    queries: Tensor | None = None


class Projected(NamedTuple):
    """Queries, keys and values of one stream, [B, h, T, d] each."""

    q: Tensor
    k: Tensor
    v: Tensor


def takes_queries(block: nn.Module) -> bool:
    """Whether `block` supports query tokens: the parts of the block and its attention must have known names."""
    known = type(block) in (Block, ResPostBlock, EvaBlock, EvaBlockPostNorm)
    return known and type(block.attn) in (Attention, AttentionRope, EvaAttention)


def two_streams(
    block: Any, streams: Streams, rotations: Rotations, *, attention: QueryAttention, group: int = 1
) -> Streams:
    """Run a timm block on raw and query tokens; the result for raw tokens is that of `block` alone.

    With `attention="bidirectional"`, an ablation, raw tokens attend to queries, so their result differs. A query has
    `group` tokens.
    """
    inputs = Streams(*(_before_attention(block, tokens) for tokens in streams))
    mixed = _attend(block.attn, inputs, rotations, attention, group)
    mixed = Streams(*(_after_attention(block, tokens) for tokens in mixed))
    streams = _add(streams, _drop_together(block.drop_path1, mixed))
    mixed = Streams(*(_perceptron(block, tokens) for tokens in streams))
    return _add(streams, _drop_together(block.drop_path2, mixed))


def attention_weights(
    block: Any, raw: Tensor, queries: Tensor | None, rotations: Rotations, *, group: int = 1
) -> Streams:
    """Return the attention weights of a block for pictures; they sum to one.

    `raw` is [B, h, T, T], `queries` [B, h, S / g, T + 1], the mean over a query's tokens, with a query's weight on
    itself last (unidirectional queries); S is 0 without queries.
    """
    attn = block.attn
    prefix = attn.num_prefix_tokens if isinstance(attn, (AttentionRope, EvaAttention)) else 0
    tokens = _project(attn, _before_attention(block, raw), rotations.raw, prefix)
    of_raw = ((tokens.q * attn.scale) @ tokens.k.transpose(-2, -1)).softmax(dim=-1)
    if queries is None:
        return Streams(of_raw, of_raw.new_zeros(*of_raw.shape[:2], 0, raw.shape[1] + 1))
    asking = _project(attn, _before_attention(block, queries), rotations.queries, 0)
    weights = _query_weights(attn, asking, tokens, group)  # [B, h, S, T + g]
    own = weights[..., raw.shape[1] :].sum(dim=-1, keepdim=True)
    each = torch.cat([weights[..., : raw.shape[1]], own], dim=-1)
    return Streams(of_raw, _by_query(each, group).mean(dim=3))


def _attend(attn: Any, inputs: Streams, rotations: Rotations, attention: QueryAttention, group: int) -> Streams:
    prefix = attn.num_prefix_tokens if isinstance(attn, (AttentionRope, EvaAttention)) else 0
    raw = _project(attn, inputs.raw, rotations.raw, prefix)
    queries = _project(attn, inputs.queries, rotations.queries, 0)
    if attention == "bidirectional":
        joint = Projected(*(torch.cat(pair, dim=2) for pair in zip(raw, queries, strict=True)))
        outputs, length = _softmax_attention(attn, joint.q, joint.k, joint.v), raw.q.shape[2]
        return Streams(
            _finish(attn, outputs[:, :, :length], inputs.raw), _finish(attn, outputs[:, :, length:], inputs.queries)
        )
    raw_output = _softmax_attention(attn, raw.q, raw.k, raw.v)
    if attention == "query_to_query":
        keys, values = torch.cat([raw.k, queries.k], dim=2), torch.cat([raw.v, queries.v], dim=2)
        query_output = _softmax_attention(attn, queries.q, keys, values)
    else:
        query_output = _raw_and_self(attn, queries, raw, group)
    return Streams(_finish(attn, raw_output, inputs.raw), _finish(attn, query_output, inputs.queries))


def _raw_and_self(attn: Any, queries: Projected, raw: Projected, group: int) -> Tensor:
    """Return [B, h, S, d]: the mean of raw values and the query's values for each query token, with a joint softmax."""
    weights: Tensor = attn.attn_drop(_query_weights(attn, queries, raw, group)).to(raw.v.dtype)
    if group == 1:
        return weights[..., :-1] @ raw.v + weights[..., -1:] * queries.v
    length = raw.k.shape[2]
    own = _by_query(weights[..., length:], group) @ _by_query(queries.v, group)
    return weights[..., :length] @ raw.v + own.flatten(2, 3)


def _query_weights(attn: Any, queries: Projected, raw: Projected, group: int) -> Tensor:
    """Return [B, h, S, T + g]: weights of each query token for the raw tokens and for tokens of its own query."""
    q = queries.q * attn.scale
    to_raw = q @ raw.k.transpose(-2, -1)  # [B, h, S, T]
    if group == 1:
        to_own = (q * queries.k).sum(dim=-1, keepdim=True)  # [B, h, S, 1]
    else:
        own = _by_query(q, group) @ _by_query(queries.k, group).transpose(-2, -1)
        to_own = own.flatten(2, 3)  # [B, h, S, g]
    return torch.cat([to_raw, to_own], dim=-1).softmax(dim=-1)


def _by_query(tokens: Tensor, group: int) -> Tensor:
    """Return [B, h, S, d] as [B, h, S / g, g, d]."""
    return tokens.reshape(*tokens.shape[:2], -1, group, tokens.shape[-1])


def _softmax_attention(attn: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T / sqrt(d)) v, fused or unfused as in the attention module."""
    if attn.fused_attn:
        return F.scaled_dot_product_attention(q, k, v, dropout_p=attn.attn_drop.p if attn.training else 0.0)
    weights: Tensor = attn.attn_drop(((q * attn.scale) @ k.transpose(-2, -1)).softmax(dim=-1))
    return weights @ v


def _project(attn: Any, tokens: Tensor, rope: Tensor | None, prefix: int) -> Projected:
    """Return q, k, v of `tokens`; `rope` rotates all except the first `prefix` tokens."""
    q, k, v = _linear(attn, tokens)
    q, k = attn.q_norm(q), attn.k_norm(k)
    if rope is not None:
        half = attn.rotate_half
        q, k = (
            torch.cat([x[:, :, :prefix], apply_rot_embed_cat(x[:, :, prefix:], rope, half=half)], dim=2).type_as(v)
            for x in (q, k)
        )
    if isinstance(attn, AttentionRope) and attn.num_kv_groups > 1:
        k, v = (x.repeat_interleave(attn.num_kv_groups, dim=1) for x in (k, v))
    return Projected(q, k, v)


def _linear(attn: Any, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, _ = tokens.shape
    if attn.qkv is None:
        q, k, v = (
            layer(tokens).reshape(batch, length, -1, attn.head_dim).transpose(1, 2)
            for layer in (attn.q_proj, attn.k_proj, attn.v_proj)
        )
        return q, k, v
    separate_biases = isinstance(attn, EvaAttention)  # separate biases for q and v, none for k
    if separate_biases and attn.q_bias is not None:
        bias = torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
        if attn.qkv_bias_separate:
            joint = attn.qkv(tokens)
            joint += bias
        else:
            joint = F.linear(tokens, weight=attn.qkv.weight, bias=bias)
    else:
        joint = attn.qkv(tokens)
    q, k, v = joint.reshape(batch, length, 3, attn.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _finish(attn: Any, mixed: Tensor, inputs: Tensor) -> Tensor:
    """Return [B, T, C] from the heads' [B, h, T, d]; `inputs` are the inputs of q, k and v (for gates)."""
    batch, length = inputs.shape[:2]
    tokens = attn.norm(mixed.transpose(1, 2).reshape(batch, length, -1))
    if attn.gate is not None:
        tokens = tokens * attn.gate(inputs).sigmoid()
    output: Tensor = attn.proj_drop(attn.proj(tokens))
    return output


def _before_attention(block: Any, tokens: Tensor) -> Tensor:
    """Return the input of a block's attention: pre-norm blocks normalise first."""
    normed: Tensor = tokens if isinstance(block, (ResPostBlock, EvaBlockPostNorm)) else block.norm1(tokens)
    return normed


def _after_attention(block: Any, mixed: Tensor) -> Tensor:
    """Return the residual of the attention: post-norm blocks normalise last, others may scale."""
    if isinstance(block, Block):
        mixed = block.ls1(mixed)
    elif isinstance(block, EvaBlock):
        mixed = mixed if block.gamma_1 is None else block.gamma_1 * mixed
    else:
        mixed = block.norm1(mixed)
    return mixed


def _perceptron(block: Any, tokens: Tensor) -> Tensor:
    """Return the residual of the MLP."""
    if isinstance(block, Block):
        mixed = block.ls2(block.mlp(block.norm2(tokens)))
    elif isinstance(block, EvaBlock):
        mixed = block.mlp(block.norm2(tokens))
        mixed = mixed if block.gamma_2 is None else block.gamma_2 * mixed
    else:
        mixed = block.norm2(block.mlp(tokens))
    output: Tensor = mixed
    return output


def _drop_together(drop_path: nn.Module, added: Streams) -> Streams:
    """Drop the paths of the same images in both streams, with the draw that the raw stream alone would make."""
    if isinstance(drop_path, nn.Identity) or not drop_path.training or drop_path.drop_prob == 0:
        return added
    keep = drop_path(added.raw.new_ones(added.raw.shape[0], 1, 1))
    return Streams(added.raw * keep, added.queries * keep)


def _add(streams: Streams, added: Streams) -> Streams:
    return Streams(streams.raw + added.raw, streams.queries + added.queries)
