"""ADCLR as a recipe transformer: query patches contrasted across views, over DINO or iBOT.

Paper: Zhang et al., "Patch-Level Contrasting without Patch Correspondence for Accurate and Dense Contrastive
Representation Learning", ICLR 2023, https://arxiv.org/abs/2306.13337. The authors released no code; this is the first
open implementation.

Of the paper: S crops of the image, each resized to one patch, enter both branches as query tokens next to either
global view. In every block a query attends to the raw tokens and to itself; raw tokens never see queries, so that the
base's own outputs stay as they are. Query i of one view is contrasted with query i of the other through the head of the
class token. There is no new parameter, no negative pair and no correspondence between patches:

    L = L_base + query_weight / (2S) sum_i [H(P_t(q_i|A), P_s(q_i|B)) + H(P_t(q_i|B), P_s(q_i|A))]

Not readable in the paper's public parts, so chosen here and open to ablation: ten queries of 5 to 25 percent of the
image's area with the colours of DINO's local views, the same pixels in both views and both branches, no position,
a centre of their own with momentum 0.9, the class token's temperatures, weight 1.

Expected by the paper on ImageNet-1k with multi-crop: linear probe ViT-S/16 77.5, ViT-B/16 79.8; COCO Mask R-CNN 1x with
ViT-S/16, box and mask AP, 44.3 / 39.7 (DINO: 40.8 / 37.3).
Cost: about S / (N + 1) more tokens in the global views, 5 percent for 10 queries beside 197 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from dovetail.errors import ModelError, OptionsError, RecipeError
from dovetail.objectives.distill import DistillSpec
from dovetail.recipe import QueryRule, Recipe, SameHead, Tap, Term
from dovetail.recipes.image_parts import blurred
from dovetail.views.plan import QuerySpec


def adclr(
    base: Recipe,
    taps: Mapping[str, Tap],
    *,
    queries: int = 10,
    query_weight: float = 1.0,
    query_scale: tuple[float, float] = (0.05, 0.25),
    query_attention: Literal["unidirectional", "bidirectional", "query_to_query"] = "unidirectional",
    query_pairing: Literal["cross", "same"] = "cross",
    query_positions: Literal["none", "crop"] = "none",
    query_tokens_per_side: int = 1,
    query_centre_momentum: float = 0.9,
    query_blur_px: float = 2.0,
    independent_queries: bool = False,
) -> Recipe:
    """Return `base` with ADCLR's query term; with `query_weight=0` its loss is exactly that of `base`.

    Args:
        base: A recipe with a prototype head on the class token, such as DINO's or iBOT's.
        taps: The model's taps.
        queries: Query patches of an image, S, at least 1.
        query_weight: Weight of the query term.
        query_scale: Share of the image's area in a query's crop.
        query_attention: "unidirectional" as in the paper; the others are ablations: "query_to_query" lets queries see
            each other, "bidirectional" lets raw tokens see queries too, which the paper finds to collapse.
        query_pairing: "cross" contrasts a query beside one view with itself beside the other, "same" beside the same.
        query_positions: "crop" gives a query the view's position at the centre of its crop.
        query_tokens_per_side: Patches on a side of a query, k. Its k x k tokens attend to the raw tokens and to each
            other, never to another query, and its vector is their mean.
        query_centre_momentum: Of the queries' own centre.
        query_blur_px: Largest deviation of the blur in pixels of the query, which is as large as a patch; 0 is none.
        independent_queries: Draw a query's colours anew for each global view.

    Raises:
        DovetailError: The base has no such term, or the model's blocks take no queries.
    """
    if base.views.queries is not None:
        raise RecipeError(
            f"{base.name!r} has query tokens of its own, so ADCLR cannot add any; put it over 'dino' or 'ibot'."
        )
    if query_tokens_per_side < 1:
        raise OptionsError(f"query_tokens_per_side is {query_tokens_per_side}; it must be at least 1.")
    if queries < 1:
        raise OptionsError(f"ADCLR with {queries} queries is its base; choose at least 1, or the base itself.")
    owner = class_term(base, taps)
    if "queries" not in taps:
        raise ModelError(
            f"ADCLR needs a ViT whose blocks take query tokens and the model has only {', '.join(taps)}; choose one of "
            "timm's plain, DeiT, DINO or EVA models, such as 'timm/vit_small_patch16_224'."
        )
    assert isinstance(owner.objective, DistillSpec)  # class_term looked for it
    objective = replace(owner.objective, centre_momentum=query_centre_momentum, pairing=query_pairing)
    term = Term("queries", "queries", SameHead(owner.name), objective, weight=query_weight)
    size_px = taps["queries"].stride * query_tokens_per_side
    spec = QuerySpec(count=queries, size_px=size_px, scale=query_scale, independent=independent_queries)
    spec = replace(spec, photometric=blurred(spec.photometric, query_blur_px))
    return replace(
        base,
        name=f"adclr-{base.name}",
        terms=(*base.terms, term),
        views=replace(base.views, queries=spec),
        query_rule=QueryRule(query_attention, query_positions, query_tokens_per_side),
    )


def class_term(base: Recipe, taps: Mapping[str, Tap]) -> Term:
    """Return the term on the image's vector whose head the queries share."""
    for term in base.terms:
        on_vector = term.tap in taps and taps[term.tap].kind == "vector"
        if on_vector and isinstance(term.objective, DistillSpec) and not isinstance(term.head, SameHead):
            return term
    raise RecipeError(
        f"ADCLR shares the head of a term that distils the class token, and {base.name!r} has none; "
        "put it over 'dino' or 'ibot'."
    )
