"""Embedding of a timm ViT: patches with masks, class and register tokens, positions, and query tokens.

Shapes: B images, h x w patches, N = h w, T = N + class and register tokens, S queries of P x P pixels, each of g
tokens, C channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers.patch_embed import PatchEmbed
from timm.models.eva import Eva
from torch import Tensor

from dovetail.errors import ModelError
from dovetail.heads.base import full_precision
from dovetail.networks.vit_attention import Rotations
from dovetail.recipe import QueryRule
from dovetail.views.view import View, cell_weights

PLAIN = QueryRule()
_WAVELENGTH = 10_000  # wavelength of the slowest sine over 2 pi, in cells


class Embedded(NamedTuple):
    """Input of the first block: `raw` [B, T, C], `queries` [B, S g, C] or None, and RoPE's rows for each block."""

    raw: Tensor
    queries: Tensor | None
    rotations: list[Rotations]


def patch_px(model: Any) -> int:
    """Return the side length of the model's square patches in pixels."""
    height, width = model.patch_embed.patch_size
    if height != width:
        raise ModelError(f"The model has patches of {height} x {width} pixels; choose a ViT with square patches.")
    return int(height)


def embed(
    model: Any,
    view: View,
    *,
    mask_token: Tensor | None,
    with_queries: bool,
    rule: QueryRule = PLAIN,
    official_positions: bool = False,
) -> Embedded:
    """Return the tokens of a view before the first block.

    Args:
        model: timm's VisionTransformer or Eva.
        view: View, optionally with a mask and queries.
        mask_token: [1, C], replaces masked patches before positions are added; required if `view` has a mask, and for
            queries of mask tokens.
        with_queries: Embed the view's queries too.
        rule: Content and positions of the queries' tokens.
        official_positions: Resample learned positions to the view's size as in DINO's code; see `dino_positions`.
    """
    check_size(model, view.pixels)
    patches = model.patch_embed(view.pixels)  # [B, h, w, C], or [B, N, C] of models for one size
    if view.mask is not None:
        patches = masked(patches, view.mask, mask_token)
    rope: Tensor | None = None
    if isinstance(model, Eva):
        raw, rope = model._pos_embed(patches)
    elif official_positions and model.pos_embed is not None and patches.dim() == 4:
        raw = with_positions(model, patches, dino_positions(model, *patches.shape[1:3]))
    else:
        raw = model._pos_embed(patches)
    raw = model.norm_pre(raw)
    queries, places = None, None
    if with_queries:
        queries, places = placed_queries(model, view, mask_token, rule)
        queries = model.norm_pre(queries)
    return Embedded(raw, queries, rotations(model, rope, view, places))


def dino_positions(model: Any, height: int, width: int) -> Tensor:
    """Return the position embedding [1, T, C] for h x w patches, resampled as in the official code of DINO and iBOT.

    The interpolation is bicubic without antialiasing (timm uses antialiasing), and the scale adds a tenth of a patch to
    the new size. Class and register tokens keep their embeddings.
    """
    rows, columns = model.patch_embed.grid_size
    if (height, width) == (rows, columns):
        return model.pos_embed  # type: ignore[no-any-return]
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    grid = model.pos_embed[:, prefix:].reshape(1, rows, columns, -1).permute(0, 3, 1, 2)
    scale = ((height + 0.1) / rows, (width + 0.1) / columns)
    with full_precision(grid):
        resampled = F.interpolate(grid, scale_factor=scale, mode="bicubic")
    return torch.cat([model.pos_embed[:, :prefix], resampled.flatten(2).transpose(1, 2)], dim=1)


def with_positions(model: Any, patches: Tensor, positions: Tensor) -> Tensor:
    """Return a VisionTransformer's tokens [B, T, C], assembled as in timm.

    The inputs are patches [B, h, w, C] and positions [1, T, C], or [1, h w, C] if class and register tokens have none.
    """
    first = [token.expand(len(patches), -1, -1) for token in (model.cls_token, model.reg_token) if token is not None]
    tokens = patches.flatten(1, 2)
    if model.no_embed_class:
        return model.pos_drop(torch.cat([*first, tokens + positions], dim=1))  # type: ignore[no-any-return]
    return model.pos_drop(torch.cat([*first, tokens], dim=1) + positions)  # type: ignore[no-any-return]


def check_size(model: Any, pixels: Tensor) -> None:
    """Raise `ModelError` for images whose sides are not multiples of the patch size."""
    patch, sides = patch_px(model), tuple(pixels.shape[-2:])
    if not model.dynamic_img_size and sides != tuple(model.patch_embed.img_size):
        wanted = " x ".join(map(str, model.patch_embed.img_size))
        raise ModelError(
            f"The ViT expects {wanted} pixels, got {sides[0]} x {sides[1]}; build it with dynamic_img_size=True."
        )
    if sides[0] % patch or sides[1] % patch:
        raise ModelError(
            f"The ViT has patches of {patch} px, got an image of {sides[0]} x {sides[1]}; choose multiples of {patch}."
        )


def masked(patches: Tensor, mask: Tensor, mask_token: Tensor | None) -> Tensor:
    """Return patches [B, h, w, C] or [B, N, C] with `mask_token` [1, C] where `mask` [B, h, w] is set (iBOT)."""
    cells = patches.shape[1:-1]
    if mask_token is None or mask[0].numel() != cells.numel() or (len(cells) == 2 and mask.shape[1:] != cells):
        found, wanted = " x ".join(map(str, mask.shape[1:])), " x ".join(map(str, cells))
        raise ModelError(
            f"The mask has {found} cells, but the view has {wanted} patches; set patch_px of masks to the patch size."
        )
    return torch.where(mask.reshape(patches.shape[:-1])[..., None], mask_token.to(patches.dtype), patches)


def embed_queries(model: Any, view: View, *, tokens_per_side: int = 1) -> Tensor:
    """Return [B, S g, C]: the patches of each query as tokens, through the same patch embedding, without a position."""
    if view.queries is None:
        raise ModelError("The tap 'queries' needs query patches, but the view has none; add them to the view plan.")
    batch, count, channels, height, width = view.queries.shape
    patch = patch_px(model)
    side = patch * tokens_per_side
    if (height, width) != (side, side):
        raise ModelError(
            f"Queries have {height} x {width} pixels, but the model's patches {patch} x {patch}; "
            f"set size_px of queries to {side}."
        )
    stem: PatchEmbed = model.patch_embed
    patches = stem.proj(view.queries.reshape(-1, channels, height, width))  # [B S, C, k, k]
    tokens: Tensor = stem.norm(patches.flatten(2).transpose(1, 2))
    return tokens.reshape(batch, count * tokens_per_side**2, -1)


def placed_queries(model: Any, view: View, mask_token: Tensor | None, rule: QueryRule) -> tuple[Tensor, Tensor | None]:
    """Return the queries' tokens [B, S g, C] with position embeddings, and their positions.

    Positions are [B, S g, 2], (x, y) in [0, 1] of the view, or None without position embeddings.
    """
    side = rule.tokens_per_side
    if rule.content == "mask":
        assert mask_token is not None  # all networks have one
        batch, count = query_boxes(view).shape[:2]
        tokens = mask_token.expand(batch, count * side**2, -1)
    else:
        tokens = embed_queries(model, view, tokens_per_side=side)
    if rule.positions == "none":
        return tokens, None
    if rule.positions == "crop":  # all tokens of a query use the centre of its crop
        centres = query_centres(view).repeat_interleave(side**2, dim=1)
        return add_positions(model, tokens, centres), centres
    height, width = model.patch_embed.grid_size
    cells = query_cells(view, side, height, width, reference=rule.reference_positions)
    inside = ((cells + 0.5) / cells.new_tensor([width, height])).clamp(0, 1)
    if rule.positions == "learned":
        return add_positions(model, tokens, inside), inside
    return tokens + sincos_positions(cells, tokens.shape[-1]).to(tokens.dtype), inside


def query_boxes(view: View) -> Tensor:
    """Return the queries' crops [B, S, 4]; raise `ModelError` if the view has none."""
    if view.query_box is None:
        raise ModelError("Query positions need the boxes of queries, which this view lacks; disable query positions.")
    return view.query_box


def query_centres(view: View) -> Tensor:
    """Return [B, S, 2]: the centres (x, y) of the queries' crops in the [0, 1] frame of the view's own pixels.

    x is mirrored if the view is flipped. Centres outside of the view are moved to its border.
    """
    boxes = query_boxes(view)
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    inside = (centres - view.box[:, None, :2]) / (view.box[:, None, 2:] - view.box[:, None, :2])
    x, y = inside.clamp(0, 1).unbind(-1)
    return torch.stack([torch.where(view.flipped[:, None], 1 - x, x), y], dim=-1)


def query_cells(view: View, side: int, height: int, width: int, *, reference: bool = False) -> Tensor:
    """Return [B, S side^2, 2]: positions of the patches of each query's crop in the view, row by row.

    Args:
        view: View with the boxes of queries.
        side: Number of patches per side of a crop.
        height: Height of the view's grid in cells.
        width: Width of the view's grid in cells.
        reference: Use positions as in PQCL's official code: upper left corners of patches instead of centres, and not
            mirrored with the view.

    Returns:
        (x, y) in cells of the view: (0, 0) is its first patch, (1, 0) the next one to the right. Crops that extend
        beyond the view have positions below 0 or beyond its last patch.
    """
    boxes, corner = query_boxes(view)[:, :, None], view.box[:, None, None, :2]  # [B, S, 1, 4], [B, 1, 1, 2]
    extent = view.box[:, None, None, 2:] - corner
    steps = torch.arange(side, device=boxes.device, dtype=boxes.dtype) + (0.0 if reference else 0.5)
    share = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).reshape(-1, 2) / side  # [side^2, 2]
    places = (boxes[..., :2] + (boxes[..., 2:] - boxes[..., :2]) * share - corner) / extent  # [B, S, side^2, 2]
    cells = places.new_tensor([width, height])
    if reference:
        return (places * cells).flatten(1, 2)
    x, y = places.unbind(-1)
    mirrored = torch.stack([torch.where(view.flipped[:, None, None], 1 - x, x), y], dim=-1)
    return (mirrored * cells - 0.5).flatten(1, 2)


def sincos_positions(cells: Tensor, channels: int) -> Tensor:
    """Return [..., C]: the sine-cosine embedding of positions (x, y) in cells [..., 2], not necessarily integers.

    A quarter of the channels each are sines of x, cosines of x, sines of y and cosines of y, with frequencies that
    decrease geometrically from 1 towards 1/10,000 radian per cell (Vaswani et al. 2017, arXiv 1706.03762, in two
    dimensions).

    Raises:
        ModelError: If the number of channels is not a multiple of 4.
    """
    if channels % 4:
        raise ModelError(
            f"Sine-cosine positions need a multiple of 4 channels, but the model has {channels}; choose "
            "another model or learned positions."
        )
    quarter = channels // 4
    exponents = torch.arange(quarter, device=cells.device, dtype=cells.dtype) / quarter
    angles = cells[..., None] * _WAVELENGTH**-exponents  # [..., 2, C / 4]
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)


def sincos_grid(model: Any) -> Tensor:
    """Return the fixed position embedding [1, T, C] of a ViT in its own layout, with zeros for the class token."""
    height, width = model.patch_embed.grid_size
    rows, columns = torch.meshgrid(torch.arange(float(height)), torch.arange(float(width)), indexing="ij")
    grid = sincos_positions(torch.stack([columns, rows], dim=-1).reshape(-1, 2), model.pos_embed.shape[-1])
    table = torch.zeros(model.pos_embed.shape)
    table[0, -height * width :] = grid
    return table


def add_positions(model: Any, queries: Tensor, centres: Tensor) -> Tensor:
    """Add the model's position embedding, bilinear at `centres` [B, S, 2], to queries [B, S, C], if it has one."""
    if model.pos_embed is None:
        return queries
    height, width = model.patch_embed.grid_size
    grid = model.pos_embed[:, -height * width :].reshape(height, width, -1).permute(2, 0, 1)  # [C, h, w]
    x, y = centres.to(grid.dtype).unbind(-1)
    with full_precision(grid):
        sampled = torch.einsum("bsh,bsw,chw->bsc", cell_weights(y, height), cell_weights(x, width), grid)
    return queries + sampled.to(queries.dtype)


def rotations(model: Any, rope: Tensor | None, view: View, centres: Tensor | None) -> list[Rotations]:
    """Return each block's rows of RoPE; queries use those of the patch that contains their position."""
    depth = len(model.blocks)
    if rope is None:
        return [Rotations()] * depth
    per_block = list(rope) if model.rope_mixed else [rope] * depth  # [N, 2d] or, mixed, [heads, N, 2d]
    if centres is None:
        return [Rotations(rows) for rows in per_block]
    patch = patch_px(model)
    height, width = (side // patch for side in view.pixels.shape[-2:])
    column = (centres[..., 0] * width).long().clamp(max=width - 1)
    row = (centres[..., 1] * height).long().clamp(max=height - 1)
    cell = row * width + column  # [B, S]
    at_queries = [rows[cell][:, None] if rows.dim() == 2 else rows[:, cell].transpose(0, 1) for rows in per_block]
    return [Rotations(rows, there) for rows, there in zip(per_block, at_queries, strict=True)]
