"""What the token methods share: the taps they read, DINO's views, and its optimiser."""

from __future__ import annotations

from collections.abc import Mapping

from dovetail.errors import DovetailError
from dovetail.recipe import OptimiserSpec, ParameterRule, Tap
from dovetail.recipes.image_parts import blurred
from dovetail.schedules import Cosine
from dovetail.views.plan import MaskSpec, Photometric, ViewPlan, ViewSpec

Scale = tuple[float, float]


def vector_tap(taps: Mapping[str, Tap]) -> str:
    """Return the tap that stands for the whole image. Raises `DovetailError` where there is none."""
    for name in ("cls", "pooled"):
        if name in taps:
            return name
    raise DovetailError(
        f"The model has no class token and no pooled features, only {', '.join(taps)}; choose a ViT, such as "
        "'timm/vit_small_patch16_224'."
    )


def patch_tap(taps: Mapping[str, Tap], method: str) -> Tap:
    """Return the ViT's patches. Raises `DovetailError` where there are none."""
    if "patches" not in taps:
        raise DovetailError(
            f"{method} reads a ViT's patches and the model has only {', '.join(taps)}; choose a ViT, such as "
            "'timm/vit_small_patch16_224'."
        )
    return taps["patches"]


def multi_crop(
    taps: Mapping[str, Tap],
    image_size: int,
    global_scale: Scale,
    local_crops: int,
    local_size: int,
    local_scale: Scale,
    *,
    blur_px: float = 2.0,
    masks: MaskSpec | None = None,
) -> ViewPlan:
    """Return DINO's views: two global ones, of which the second is solarised and rarely blurred, and local ones.

    Raises:
        DovetailError: A side is no multiple of the model's patches.
    """
    if "patches" in taps:
        patch = taps["patches"].stride
        for option, side in (("image_size", image_size), ("local_size", local_size)):
            if side % patch:
                nearest = max(round(side / patch), 1) * patch
                raise DovetailError(
                    f"{option} {side} is no multiple of the model's patch {patch}; set it to {nearest}."
                )
    always, seldom, local_blur = (
        blurred(photometric, blur_px)
        for photometric in (Photometric(blur_p=1.0), Photometric(blur_p=0.1, solarise_p=0.2), Photometric())
    )
    first = ViewSpec(size_px=image_size, scale=global_scale, photometric=always)
    second = ViewSpec(size_px=image_size, scale=global_scale, photometric=seldom)
    local = ViewSpec(size_px=local_size, scale=local_scale, role="local", photometric=local_blur)
    return ViewPlan((first, second, *[local] * local_crops), masks=masks)


def adamw(
    base_lr: float, weight_decay: tuple[float, float], warmup_epochs: float, *, clip_norm: float, frozen_epochs: int
) -> OptimiserSpec:
    """Return DINO's optimiser: AdamW, rising weight decay, clipping tensor by tensor, prototypes frozen at first."""
    return OptimiserSpec(
        "adamw",
        base_lr=base_lr,
        weight_decay=Cosine(*weight_decay),
        warmup_epochs=warmup_epochs,
        final_lr=1e-6,
        peak_twice=True,
        decay_one_dimensional=False,
        clip_norm=clip_norm,
        clip_each_parameter=True,
        rules=(ParameterRule(r"^heads\..*last_layer", frozen_epochs=frozen_epochs),),
    )
