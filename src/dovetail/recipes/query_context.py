"""PQCL: iBOT with query tokens that have a position but no pixels.

Zhang et al., "Patch-level Contrastive Learning via Positional Query for Visual Pre-training", ICML 2023: the successor
of ADCLR by the same first author. We could only read the abstract of the paper. The settings follow the official code,
https://github.com/Sherrylone/PQCL, for ViT-S/16.

A local crop of the image is hidden from the student. Instead, the student receives mask tokens at the positions of the
crop's patches, together with each global view. The teacher encodes the crop as an image of its own. Each mask token
predicts the teacher's output at its position, with G the two global views, N the number of patches of the crop, and s,
t the logits of student and teacher:

    L = L_cls + L_masked_patches + query_weight / (|G| N) sum over v in G and n of H(P(t_n), s_n|v)

L_cls and L_masked_patches are iBOT's, on the global views. The three terms share one head; each has its own centre.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from dovetail.errors import ModelError, OptionsError
from dovetail.objectives.distill import DistillSpec
from dovetail.recipe import QueryRule, Recipe, SameHead, Tap, Term
from dovetail.recipes.image_parts import blurred
from dovetail.recipes.shared import with_options_of
from dovetail.recipes.token_parts import Scale, patch_tap
from dovetail.recipes.tokens import ibot
from dovetail.schedules import LinearByEpoch
from dovetail.views.plan import Photometric, QuerySpec, ViewPlan


@with_options_of(ibot, local_crops=0)
def pqcl(
    taps: Mapping[str, Tap],
    *,
    query_crops: int = 1,
    query_size: int = 96,
    query_scale: Scale = (0.05, 0.25),
    query_weight: float = 1.0,
    query_attention: Literal["unidirectional", "query_to_query"] = "unidirectional",
    query_positions: Literal["sincos", "learned"] = "sincos",
    query_centre_momentum: float = 0.9,
    query_blur_px: float = 2.0,
    teacher_query_temperature: float = 0.07,
    reference_query_positions: bool = False,
    **options: Any,
) -> Recipe:
    """Return PQCL: iBOT, and mask tokens that predict the teacher's patches of a local crop.

    Args:
        taps: Taps of the model.
        query_crops: Number of crops per image whose patches are predicted, at least 1.
        query_size: Side length of the predicted crops in pixels; a multiple of the model's patch size.
        query_scale: Range of the fraction of the image area that each predicted crop (see `query_crops`) covers.
        query_weight: Weight of the query term.
        query_attention: Query tokens attend to the raw tokens and, with "unidirectional", to the tokens of their own
            crop, or, with "query_to_query" as in the official code, to those of all crops. Both are the same for one
            crop.
        query_positions: "sincos" uses fixed sine-cosine position embeddings for query tokens and model. "learned" keeps
            the model's own embeddings and samples them at the positions of the tokens, for a model with trained
            weights; positions outside of the view are moved to its border.
        query_centre_momentum: Momentum of the separate centre of the queries.
        query_blur_px: Maximum standard deviation of the blur in pixels of the crop; 0 disables blur.
        teacher_query_temperature: Temperature of the teacher's softmax on the crop's patches, after warm-up.
        reference_query_positions: Use the positions of the official code: corners of patches instead of centres, and
            not mirrored with the view.

    Raises:
        DovetailError: If the model's blocks do not support query tokens, or a value is out of range.
    """
    patch = patch_tap(taps, "PQCL").stride
    check_queries(taps, query_crops, query_size, query_positions)
    base = ibot(taps, **options)
    cls = next(term for term in base.terms if term.name == "cls")
    assert isinstance(cls.objective, DistillSpec)  # iBOT's
    warming = cls.objective.teacher_temperature
    assert isinstance(warming, LinearByEpoch)
    objective = DistillSpec(
        cls.objective.student_temperature,
        replace(warming, end=teacher_query_temperature),
        query_centre_momentum,
        pairing="same",
    )
    crops = QuerySpec(
        query_crops, query_size, query_scale, flip_p=0.0, photometric=blurred(Photometric(), query_blur_px)
    )
    return replace(
        base,
        name="pqcl",
        terms=(*base.terms, Term("queries", "queries", SameHead("cls"), objective, weight=query_weight)),
        views=replace(alike(base.views), queries=crops),
        query_rule=QueryRule(
            query_attention,
            query_positions,
            query_size // patch,
            content="mask",
            reference_positions=reference_query_positions,
        ),
        epochs=100,
        batch_size=512,
    )


def alike(plan: ViewPlan) -> ViewPlan:
    """Return a plan whose second global view uses the colours of the first: always blurred, never solarised."""
    first, second, *local = plan.views
    return replace(plan, views=(first, replace(second, photometric=first.photometric), *local))


def check_queries(taps: Mapping[str, Tap], crops: int, size_px: int, positions: str) -> None:
    """Raise `DovetailError` if the model does not support the query tokens."""
    patch, channels = taps["patches"].stride, taps["patches"].channels
    if "queries" not in taps:
        raise ModelError(
            f"PQCL needs a ViT that supports query tokens, but the model has only {', '.join(taps)}; choose one of "
            "timm's plain, DeiT, DINO or EVA models, such as 'timm/vit_small_patch16_224'."
        )
    if crops < 1:
        raise OptionsError(f"query_crops is {crops}; it must be at least 1 (use 'ibot' for none).")
    if size_px < patch or size_px % patch:
        nearest = max(round(size_px / patch), 1) * patch
        raise OptionsError(f"query_size {size_px} is not a multiple of the patch size {patch}; set it to {nearest}.")
    if positions == "sincos" and channels % 4:
        raise OptionsError(
            f"Sine-cosine positions need a multiple of 4 channels, but the model has {channels}; set "
            "query_positions to 'learned'."
        )


METHODS: dict[str, Callable[..., Recipe]] = {"pqcl": pqcl}
