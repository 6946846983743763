"""PQCL: iBOT with query tokens that have a place but no pixels.

Zhang et al., "Patch-level Contrastive Learning via Positional Query for Visual Pre-training", ICML 2023: the successor
of ADCLR by the same first author. Of the paper only the abstract could be read; settings are those of the official
code, https://github.com/Sherrylone/PQCL, for ViT-S/16.

A local crop of the image is hidden from the student: beside each global view it gets mask tokens at the places of the
crop's patches. The teacher encodes the crop by itself, as an image. Each mask token has to tell what the teacher sees
at its place, with G the two global views, N the crop's patches and s, t the logits of student and teacher:

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
    """Return PQCL: iBOT, and mask tokens at the places of a local crop against the teacher's patches of it.

    Args:
        taps: The model's taps.
        query_crops: Crops of an image whose patches are asked for, at least 1.
        query_size: Side of such a crop in pixels; a multiple of the model's patch.
        query_scale: Share of the image's area in such a crop.
        query_weight: Weight of the query term.
        query_attention: What a query token attends to beside the raw tokens: "unidirectional" the tokens of its own
            crop, "query_to_query" those of all crops, as the official code has it. They differ for more than one crop.
        query_positions: "sincos" gives query tokens the sine-cosine position of their place, and the model fixed
            positions of the same kind, which do not learn. "learned" keeps the model's own positions and samples them
            at the tokens' places, for a model that starts from trained weights; places outside of the view are moved to
            its border.
        query_centre_momentum: Of the queries' own centre.
        query_blur_px: Largest deviation of the blur in pixels of the crop; 0 is none.
        teacher_query_temperature: Of the teacher's softmax on the crop's patches, after warm-up.
        reference_query_positions: Place query tokens as the official code does: at the corners of patches in place of
            their centres, and not mirrored where the view is.

    Raises:
        DovetailError: The model's blocks take no queries, or a number is out of its range.
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
    """Return a plan whose second global view has the colours of the first: always blurred, never solarised."""
    first, second, *local = plan.views
    return replace(plan, views=(first, replace(second, photometric=first.photometric), *local))


def check_queries(taps: Mapping[str, Tap], crops: int, size_px: int, positions: str) -> None:
    """Raise `DovetailError` where query tokens cannot be made as asked."""
    patch, channels = taps["patches"].stride, taps["patches"].channels
    if "queries" not in taps:
        raise ModelError(
            f"PQCL needs a ViT whose blocks take query tokens and the model has only {', '.join(taps)}; choose one of "
            "timm's plain, DeiT, DINO or EVA models, such as 'timm/vit_small_patch16_224'."
        )
    if crops < 1:
        raise OptionsError(f"PQCL with {crops} query crops is iBOT; choose at least 1, or 'ibot'.")
    if size_px < patch or size_px % patch:
        nearest = max(round(size_px / patch), 1) * patch
        raise OptionsError(f"query_size {size_px} is no multiple of the model's patch {patch}; set it to {nearest}.")
    if positions == "sincos" and channels % 4:
        raise OptionsError(
            f"Sine-cosine positions need a number of channels that 4 divides, and the model has {channels}; set "
            "query_positions to 'learned'."
        )


METHODS: dict[str, Callable[..., Recipe]] = {"pqcl": pqcl}
