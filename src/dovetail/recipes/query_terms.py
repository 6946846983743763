"""ADCLR as a recipe transformer: query patches contrasted across views, over DINO or iBOT.

Paper: Zhang et al., "Patch-Level Contrasting without Patch Correspondence for Accurate and Dense Contrastive
Representation Learning", ICLR 2023, https://arxiv.org/abs/2306.13337. The authors released no code; this is the first
open implementation.

S crops of the image are each resized to one patch and enter both branches as query tokens with either global view. In
every block a query attends to the raw tokens and to itself. Raw tokens never attend to queries, so the outputs of the
base do not change. The head of the class token contrasts query i of one view with query i of the other. ADCLR needs no
new parameters, negative pairs or correspondence between patches:

    L = L_base + query_weight / (2S) sum_i [H(P_t(q_i|A), P_s(q_i|B)) + H(P_t(q_i|B), P_s(q_i|A))]

The public parts of the paper leave some settings open. We chose ten queries with 5 to 25 percent of the image's area
and the colours of DINO's local views, the same pixels in both views and both branches, no position, a separate centre
with momentum 0.9, the class token's temperatures, and weight 1. All of them are options.

Expected on ImageNet-1k (paper), with multi-crop: linear probe ViT-S/16 77.5, ViT-B/16 79.8; COCO Mask R-CNN 1x with
ViT-S/16, box and mask AP, 44.3 / 39.7 (DINO: 40.8 / 37.3).
Cost: about S / (N + 1) more tokens in the global views, 5 percent for 10 queries and 197 tokens.
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
    """Return `base` with ADCLR's query term. With `query_weight=0` the loss equals that of `base`.

    Args:
        base: Recipe with a prototype head on the class token, such as DINO's or iBOT's.
        taps: Taps of the model.
        queries: Number of query patches per image, S, at least 1.
        query_weight: Weight of the query term.
        query_scale: Range of the fraction of the image area that a query's crop covers.
        query_attention: "unidirectional" is the paper's. The others are ablations: with "query_to_query", queries
            attend to each other; with "bidirectional", raw tokens attend to queries too, which collapses in the paper.
        query_pairing: "cross" contrasts a query in one view with itself in the other view, "same" in the same view.
        query_positions: "crop" adds the view's position embedding at the centre of the query's crop.
        query_tokens_per_side: Number of patches per side of a query, k. Its k x k tokens attend to the raw tokens and
            to each other, never to another query, and their mean is the query's vector.
        query_centre_momentum: Momentum of the separate centre of the queries.
        query_blur_px: Maximum standard deviation of the blur in pixels of the query, which has the size of a patch; 0
            disables blur.
        independent_queries: Draw the colours of a query separately for each global view.

    Raises:
        DovetailError: If the base has no such term, or the model's blocks do not support query tokens.
    """
    if base.views.queries is not None:
        raise RecipeError(
            f"ADCLR cannot add query tokens to {base.name!r}, which has its own; use it over 'dino' or 'ibot'."
        )
    if query_tokens_per_side < 1:
        raise OptionsError(f"query_tokens_per_side is {query_tokens_per_side}; it must be at least 1.")
    if queries < 1:
        raise OptionsError(f"queries is {queries}; it must be at least 1 (use the base method for none).")
    if "queries" not in taps:
        raise ModelError(
            f"ADCLR needs a ViT that supports query tokens, but the model has only {', '.join(taps)}; choose one of "
            "timm's plain, DeiT, DINO or EVA models, such as 'timm/vit_small_patch16_224'."
        )
    owner = class_term(base, taps)
    assert isinstance(owner.objective, DistillSpec)  # class_term checks this
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
    """Return the term on the image's vector; the queries share its head."""
    for term in base.terms:
        on_vector = term.tap in taps and taps[term.tap].kind == "vector"
        if on_vector and isinstance(term.objective, DistillSpec) and not isinstance(term.head, SameHead):
            return term
    raise RecipeError(
        f"ADCLR needs a term that distils the class token, and {base.name!r} has none; use it over 'dino' or 'ibot'."
    )
