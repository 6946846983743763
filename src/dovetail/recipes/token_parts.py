"""What the token methods share: the taps they read, and DINO's training: its views, optimiser and teacher."""

from __future__ import annotations

from collections.abc import Mapping

from dovetail.errors import ModelError, OptionsError
from dovetail.recipe import EncoderInit, OptimiserSpec, ParameterRule, Recipe, Tap, Term
from dovetail.recipes.image_parts import blurred
from dovetail.schedules import Cosine
from dovetail.views.plan import MaskSpec, Photometric, ViewPlan, ViewSpec

Scale = tuple[float, float]


def vector_tap(taps: Mapping[str, Tap]) -> str:
    """Return the tap that stands for the whole image. Raises `ModelError` where there is none."""
    for name in ("cls", "pooled"):
        if name in taps:
            return name
    raise ModelError(
        f"The model has no class token and no pooled features, only {', '.join(taps)}; choose a ViT, such as "
        "'timm/vit_small_patch16_224'."
    )


def patch_tap(taps: Mapping[str, Tap], method: str) -> Tap:
    """Return the ViT's patches. Raises `ModelError` where there are none."""
    if "patches" not in taps:
        raise ModelError(
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
        OptionsError: A side is no multiple of the model's patches.
    """
    if "patches" in taps:
        patch = taps["patches"].stride
        for option, side in (("image_size", image_size), ("local_size", local_size)):
            if side % patch:
                nearest = max(round(side / patch), 1) * patch
                raise OptionsError(f"{option} {side} is no multiple of the model's patch {patch}; set it to {nearest}.")
    always, seldom, local_blur = (
        blurred(photometric, blur_px)
        for photometric in (Photometric(blur_p=1.0), Photometric(blur_p=0.1, solarise_p=0.2), Photometric())
    )
    first = ViewSpec(size_px=image_size, scale=global_scale, photometric=always)
    second = ViewSpec(size_px=image_size, scale=global_scale, photometric=seldom)
    local = ViewSpec(size_px=local_size, scale=local_scale, role="local", photometric=local_blur)
    return ViewPlan((first, second, *[local] * local_crops), masks=masks)


def adamw(
    base_lr: float,
    weight_decay: tuple[float, float],
    warmup_epochs: float,
    *,
    final_lr: float,
    clip_norm: float,
    frozen_epochs: float,
) -> OptimiserSpec:
    """Return DINO's optimiser: AdamW, rising weight decay, clipping tensor by tensor, prototypes frozen at first."""
    return OptimiserSpec(
        "adamw",
        base_lr=base_lr,
        weight_decay=Cosine(*weight_decay),
        warmup_epochs=warmup_epochs,
        final_lr=final_lr,
        peak_twice=True,
        decay_one_dimensional=False,
        clip_norm=clip_norm,
        clip_each_parameter=True,
        rules=(ParameterRule(r"^heads\..*last_layer", frozen_epochs=frozen_epochs),),
    )


def self_distilled(
    name: str,
    taps: Mapping[str, Tap],
    terms: tuple[Term, ...],
    epochs: int,
    masks: MaskSpec | None = None,
    *,
    momentum: float = 0.996,
    base_lr: float = 5e-4,
    final_lr: float = 1e-6,
    weight_decay: float = 0.04,
    final_weight_decay: float = 0.4,
    warmup_epochs: float = 10.0,
    clip_norm: float = 3.0,
    frozen_epochs: float = 1.0,
    image_size: int = 224,
    global_scale: Scale = (0.4, 1.0),
    local_crops: int = 8,
    local_size: int = 96,
    local_scale: Scale = (0.05, 0.4),
    blur_px: float = 2.0,
    reference_timm_positions: bool = False,
) -> Recipe:
    """Return a recipe whose terms are trained as DINO trains.

    Args:
        name: The recipe's.
        taps: The model's taps.
        terms: What is compared.
        epochs: The paper's.
        masks: Of the global views.
        momentum: The teacher's at the start; a cosine takes it to 1.
        base_lr: Learning rate at a batch of 256 (AdamW).
        final_lr: Learning rate at the end of its cosine, whatever the batch.
        weight_decay: At the start, of tensors with more than one dimension.
        final_weight_decay: At the end of its cosine.
        warmup_epochs: Linear warm-up from 0.
        clip_norm: Largest gradient norm of every single tensor.
        frozen_epochs: Epochs in which the prototypes stay as they are.
        image_size: Side of the two global views in pixels.
        global_scale: Their share of the image's area.
        local_crops: How many local views.
        local_size: Their side in pixels.
        local_scale: Their share of the image's area.
        blur_px: Largest deviation of the blur in pixels of the view; 2 is made for views of 224 px, 0 is none.
        reference_timm_positions: Resample positions to local views as timm does, with antialiasing; the official codes
            have none.
    """
    views = multi_crop(
        taps, image_size, global_scale, local_crops, local_size, local_scale, blur_px=blur_px, masks=masks
    )
    decay = (weight_decay, final_weight_decay)
    return Recipe(
        name=name,
        terms=terms,
        views=views,
        optimiser=adamw(
            base_lr, decay, warmup_epochs, final_lr=final_lr, clip_norm=clip_norm, frozen_epochs=frozen_epochs
        ),
        teacher_momentum=Cosine(momentum, 1.0),
        forward_views="per_size",
        encoder_init=EncoderInit(class_token_std=0.02),
        official_positions=not reference_timm_positions,
        epochs=epochs,
        batch_size=1024,
    )
