"""Parts that the recipes of image-level methods share: the tap, the views, the optimiser."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from dovetail.errors import OptionsError
from dovetail.networks.network import deepest_encoder_tap
from dovetail.recipe import OptimiserSpec, ParameterRule, Tap
from dovetail.sizes import Size
from dovetail.views.plan import Photometric, ViewPlan, ViewSpec


def blurred(photometric: Photometric, blur_px: float) -> Photometric:
    """Return `photometric` with a blur of up to `blur_px` pixels standard deviation; 0 disables blur."""
    if blur_px < 0:
        raise OptionsError(f"blur_px is {blur_px:g}; it must be at least 0.")
    if not blur_px:
        return replace(photometric, blur_p=0.0)
    return replace(photometric, blur_sigma_px=(min(photometric.blur_sigma_px[0], blur_px), blur_px))


def image_tap(taps: Mapping[str, Tap]) -> str:
    """Return the encoder's vector (a ViT's class token, or its pooled patches), else its deepest map."""
    vectors = [name for name, tap in taps.items() if tap.kind == "vector" and tap.part == "encoder"]
    return vectors[0] if vectors else deepest_encoder_tap(taps)


BYOL_PAIR = (Photometric(blur_p=1.0), Photometric(blur_p=0.1, solarise_p=0.2))
"""BYOL's asymmetric pair: the first is always blurred, the second seldom, but sometimes solarised.

SlotCon and PixPro use it too.
"""

MOCO_VIEW = Photometric(saturation=0.4)
"""Both views of MoCo v2. SimSiam and DenseCL use them too."""


def pair_views(
    first: Photometric,
    second: Photometric | None = None,
    interpolation: Literal["bilinear", "bicubic"] = "bicubic",
    min_overlap: float = 0.0,
    *,
    image_size: Size = 224,
    min_scale: float = 0.08,
    blur_px: float = 2.0,
) -> ViewPlan:
    """Return the plan of two global views that most methods use.

    Args:
        first: Photometric augmentation of the first view; `blur_px` limits its blur.
        second: Photometric augmentation of the second view; defaults to `first`.
        interpolation: Interpolation of both crops.
        min_overlap: Minimum overlap of the crops; see `ViewPlan`.
        image_size: Side length of the views in pixels, or height x width, such as 64x128.
        min_scale: Minimum fraction of the image area that a view covers.
        blur_px: Maximum standard deviation of the blur in pixels of the view; 2 is meant for views of 224 px, 0
            disables blur.
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
    """Return LARS that neither decays nor scales one-dimensional parameters; `bias_lr` is their learning rate."""
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
    """Return the rule for the learning rate of biases and normalisation layers; no rule for None.

    LARS does not scale their learning rate, so a value that suits the weights is far too high for them in a short run
    with small batches.
    """
    if bias_lr is None:
        return ()
    if not base_lr > 0:
        raise OptionsError(f"base_lr is {base_lr:g}; it must be above 0 when bias_lr is set.")
    return (ParameterRule("", lr_scale=bias_lr / base_lr, one_dimensional=True),)


def given(value: float | None, default: float) -> float:
    """Return `value`, or `default` for None."""
    return default if value is None else value
