"""What the recipes of image-level methods share: the tap, the views, the optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from dovetail.errors import OptionsError
from dovetail.networks.network import deepest_encoder_tap
from dovetail.recipe import OptimiserSpec, ParameterRule, Tap
from dovetail.views.plan import Photometric, ViewPlan, ViewSpec


def blurred(photometric: Photometric, blur_px: float) -> Photometric:
    """Return `photometric` with blurs of a standard deviation of up to `blur_px` pixels; none for 0."""
    if blur_px < 0:
        raise OptionsError(f"blur_px is {blur_px:g}; it is a width in pixels, 0 for no blur.")
    if not blur_px:
        return replace(photometric, blur_p=0.0)
    return replace(photometric, blur_sigma_px=(min(photometric.blur_sigma_px[0], blur_px), blur_px))


def image_tap(taps: Mapping[str, Tap]) -> str:
    """Return the encoder's vector (a ViT's class token, or its pooled patches), else its deepest map."""
    vectors = [name for name, tap in taps.items() if tap.kind == "vector" and tap.part == "encoder"]
    return vectors[0] if vectors else deepest_encoder_tap(taps)


BYOL_PAIR = (Photometric(blur_p=1.0), Photometric(blur_p=0.1, solarise_p=0.2))
"""BYOL's asymmetric pair: one always blurred, the other seldom, but solarised at times. SlotCon and PixPro share it."""

MOCO_VIEW = Photometric(saturation=0.4)
"""Both views of MoCo v2, which SimSiam and DenseCL share."""


def pair_views(
    first: Photometric,
    second: Photometric | None = None,
    interpolation: Literal["bilinear", "bicubic"] = "bicubic",
    min_overlap: float = 0.0,
    *,
    image_size: int = 224,
    min_scale: float = 0.08,
    blur_px: float = 2.0,
) -> ViewPlan:
    """Return two global views, which most methods have.

    Args:
        first: Of the first view, but for the width of its blur.
        second: Of the second view; the first's unless given.
        interpolation: Of both.
        min_overlap: See `ViewPlan`.
        image_size: Side of the views in pixels.
        min_scale: Smallest share of the image's area in a view.
        blur_px: Largest deviation of the blur in pixels of the view; 2 is made for views of 224 px, 0 is none.
    """
    view = ViewSpec(image_size, (min_scale, 1.0), interpolation=interpolation)
    pair = tuple(replace(view, photometric=blurred(one, blur_px)) for one in (first, second or first))
    return ViewPlan(pair, min_overlap=min_overlap)


def lars(
    base_lr: float,
    weight_decay: float,
    *,
    warmup_epochs: float,
    bias_lr: float | None = None,
    warmup_start: float = 0.0,
    final_lr: float = 0.0,
    final_share: float = 0.0,
) -> OptimiserSpec:
    """Return LARS that neither decays nor adapts one-dimensional parameters, whose rate `bias_lr` may be their own."""
    return OptimiserSpec(
        "lars",
        base_lr=base_lr,
        weight_decay=weight_decay,
        warmup_epochs=warmup_epochs,
        warmup_start=warmup_start,
        final_lr=final_lr,
        final_share=final_share,
        decay_one_dimensional=False,
        rules=one_dimensional_rate(bias_lr, base_lr),
    )


def one_dimensional_rate(bias_lr: float | None, base_lr: float) -> tuple[ParameterRule, ...]:
    """Return the rule that gives biases and normalisation layers a learning rate of their own; none for None.

    LARS does not adapt them, so a rate that suits its weights in a short run of small batches is far too high for them.
    """
    if bias_lr is None:
        return ()
    if not base_lr > 0:
        raise OptionsError(f"base_lr is {base_lr:g}; it must be above 0, as the rate of biases is relative to it.")
    return (ParameterRule("", lr_scale=bias_lr / base_lr, one_dimensional=True),)


def given(value: float | None, default: float) -> float:
    """Return `value`, or `default` for None."""
    return default if value is None else value
