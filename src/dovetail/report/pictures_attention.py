"""Attention maps of a ViT's class token and query tokens in its last block.

Shapes: N images, C channels, h x w patches, T raw tokens, S queries, H heads, P pixels of a patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor

from dovetail.errors import ModelError
from dovetail.networks.rest import at_rest
from dovetail.networks.vit import ViTNetwork
from dovetail.networks.vit_attention import attention_weights, takes_queries
from dovetail.networks.vit_embed import embed
from dovetail.report.pixels import as_view, shown
from dovetail.report.sheets import Sheet, heat, put_label, short
from dovetail.run.restored import Restored
from dovetail.views.view import View

MOST_HEADS = 6
# Boxes (x1, y1, x2, y2) of the query patches, relative to the image: the centres of its quarters, and its centre.
QUERY_BOXES = (
    *((0.1, 0.1, 0.4, 0.4), (0.6, 0.1, 0.9, 0.4), (0.35, 0.35, 0.65, 0.65)),
    *((0.1, 0.6, 0.4, 0.9), (0.6, 0.6, 0.9, 0.9)),
)


class Attention(NamedTuple):
    """Attention weights of the last block: `cls` [N, H, h, w] (None without a class token), `queries` [N, S, h, w]."""

    cls: Tensor | None
    queries: Tensor | None


def vit_of(run: Restored) -> ViTNetwork:
    """Return the ViT of a run. Raise `ModelError` for other models, and for ViTs with unknown attention layers."""
    network = run.after
    if not isinstance(network, ViTNetwork) or not takes_queries(network.vit.blocks[-1]):
        raise ModelError(
            f"{run.options.model} is not a ViT with plain attention; use `visualize pca` instead, or a run of a model "
            "such as timm/vit_small_patch16_224."
        )
    return network


def attention_of(network: ViTNetwork, view: View) -> Attention:
    """Return the attention weights of the last block on the patches of `view`, averaged over heads for queries."""
    vit, with_queries = network.vit, view.queries is not None
    patch = network.taps["patches"].stride
    height, width = (side // patch for side in view.pixels.shape[-2:])
    with at_rest(network):
        raw, queries, rotations = embed(
            vit,
            view,
            mask_token=network.mask_token,
            with_queries=with_queries,
            rule=network.rules.query_rule,
            official_positions=network.rules.official_positions,
        )
        for index, block in enumerate(vit.blocks[:-1]):
            raw, queries = network.through_block(block, raw, queries, rotations[index])
        group = network.rules.query_rule.tokens_per_side**2
        weights = attention_weights(vit.blocks[-1], raw, queries, rotations[-1], group=group)
    prefix = vit.num_prefix_tokens
    cls = None
    if vit.cls_token is not None:
        cls = weights.raw[:, :, 0, prefix:].reshape(*weights.raw.shape[:2], height, width).float().cpu()
    if queries is None:
        return Attention(cls, None)
    to_patches = weights.queries.mean(dim=1)[:, :, prefix:-1]  # the last weight is the query's own
    return Attention(cls, to_patches.reshape(*to_patches.shape[:2], height, width).float().cpu())


def attention_sheet(run: Restored, names: Sequence[str], crops: Sequence[Tensor]) -> Sheet:
    """Return a sheet with the attention of the class token: the mean over heads, then the first heads.

    Raises:
        ModelError: The model is not a ViT, or has no class token.
    """
    network = vit_of(run)
    cls = attention_of(network, as_view(crops, run.recipe.views, network)).cls
    if cls is None:
        raise ModelError(f"{run.options.model} has no class token; use `visualize pca` instead.")
    heads = min(cls.shape[1], MOST_HEADS)
    title = f"Attention of the class token in the last block, after {run.steps}"
    sheet = Sheet(len(names), 2 + heads, title=title)
    for row, (name, pixels) in enumerate(zip(names, crops, strict=True)):
        sheet.show(row, 0, shown(pixels), title=short(name), smooth=True)
        maps = [cls[row].mean(dim=0), *cls[row, :heads]]
        for column, weights in enumerate(maps, start=1):
            words = "mean over heads" if column == 1 else f"head {column - 1}"
            sheet.show(row, column, heat(weights.numpy()), title=peak(weights, words if row == 0 else ""))
    sheet.scale(0, 1, "attention relative to the map's maximum (0 to 1)")
    return sheet


def query_sheet(run: Restored, names: Sequence[str], crops: Sequence[Tensor]) -> Sheet:
    """Return a sheet with the attention of query tokens for five crops of each image."""
    network = vit_of(run)
    side_px = network.taps["patches"].stride * network.rules.query_rule.tokens_per_side
    view = with_queries(as_view(crops, run.recipe.views, network), side_px)
    queries = attention_of(network, view).queries
    assert queries is not None  # the view has queries
    title = f"Attention of query tokens in the last block, mean over heads, after {run.steps}"
    sheet = Sheet(len(names), 1 + len(QUERY_BOXES), title=title)
    for row, (name, pixels) in enumerate(zip(names, crops, strict=True)):
        image = shown(pixels)
        height, width = image.shape[:2]
        axes = sheet.show(row, 0, image, title=short(name), smooth=True)
        for number, box in enumerate(QUERY_BOXES, start=1):
            axes.add_patch(rectangle(box, height, width))
            put_label(axes, box[0] * width, box[1] * height, str(number), corner=True)
            weights = queries[row, number - 1]
            place = sheet.show(row, number, heat(weights.numpy()), title=peak(weights, words_of(number, row)))
            place.add_patch(rectangle(box, *weights.shape))
    sheet.scale(0, 1, "attention relative to the map's maximum (0 to 1)")
    return sheet


def peak(weights: Tensor, words: str) -> str:
    """Return a title with the largest weight of a map [h, w] relative to its mean. 1 is uniform attention."""
    times = f"maximum {float(weights.max() / weights.mean()):.1f} × mean"
    return f"{words}\n{times}" if words else times


def words_of(number: int, row: int) -> str:
    """Return the heading of a column, for the first row only."""
    return f"query {number}" if row == 0 else ""


def rectangle(box: tuple[float, float, float, float], height: int, width: int) -> Rectangle:
    """Return the outline of a box in [0, 1] on an image of `height` x `width` pixels."""
    left, top, right, bottom = box
    place = (left * width - 0.5, top * height - 0.5)
    size = ((right - left) * width, (bottom - top) * height)
    outline = [withStroke(linewidth=3.5, foreground="black")]
    return Rectangle(place, *size, fill=False, edgecolor="white", linewidth=1.5, path_effects=outline)


def with_queries(view: View, side_px: int) -> View:
    """Add the crops of `QUERY_BOXES` [N, S, C, P, P] to a view of whole images."""
    height, width = view.pixels.shape[-2:]
    patches = []
    for left, top, right, bottom in QUERY_BOXES:
        rows = slice(round(top * height), round(bottom * height))
        crop = view.pixels[:, :, rows, round(left * width) : round(right * width)]
        patches.append(torch.nn.functional.interpolate(crop, size=(side_px, side_px), mode="bicubic", antialias=True))
    boxes = torch.tensor(QUERY_BOXES, device=view.pixels.device).expand(len(view.pixels), -1, -1)
    return replace(view, queries=torch.stack(patches, dim=1), query_box=boxes)
