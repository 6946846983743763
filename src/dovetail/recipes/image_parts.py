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


def byol_views(
    image_size: int,
    min_scale: float,
    blur_px: float = 2.0,
    *,
    interpolation: Literal["bilinear", "bicubic"] = "bicubic",
) -> ViewPlan:
    """Return BYOL's asymmetric pair: one always blurred, the other seldom, but solarised at times."""
    view = ViewSpec(image_size, (min_scale, 1.0), interpolation=interpolation)
    first = blurred(Photometric(blur_p=1.0), blur_px)
    second = blurred(Photometric(blur_p=0.1, solarise_p=0.2), blur_px)
    return ViewPlan((replace(view, photometric=first), replace(view, photometric=second)))


def moco_views(image_size: int, min_scale: float, blur_px: float = 2.0) -> ViewPlan:
    """Return the equal pair of MoCo v2, which SimSiam shares."""
    photometric = blurred(Photometric(saturation=0.4), blur_px)
    view = ViewSpec(image_size, (min_scale, 1.0), interpolation="bilinear", photometric=photometric)
    return ViewPlan((view, view))


def lars(
    base_lr: float,
    weight_decay: float,
    *,
    warmup_epochs: float,
    final_share: float = 0.0,
    rules: tuple[ParameterRule, ...] = (),
) -> OptimiserSpec:
    """Return LARS that neither decays nor adapts one-dimensional parameters."""
    return OptimiserSpec(
        "lars",
        base_lr=base_lr,
        weight_decay=weight_decay,
        warmup_epochs=warmup_epochs,
        final_share=final_share,
        decay_one_dimensional=False,
        rules=rules,
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
