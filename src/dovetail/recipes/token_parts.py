"""Parts that the token methods share: their taps, and DINO's views, optimiser and teacher."""

from __future__ import annotations

from collections.abc import Mapping

from dovetail.errors import ModelError, OptionsError
from dovetail.networks.network import deepest_encoder_tap
from dovetail.recipe import EncoderInit, OptimiserSpec, ParameterRule, Recipe, Tap, Term
from dovetail.recipes.image_parts import blurred
from dovetail.schedules import Cosine
from dovetail.sizes import Size, multiple_of, sides, size_in_words, with_aspect_of
from dovetail.views.plan import MaskSpec, Photometric, ViewPlan, ViewSpec

Scale = tuple[float, float]


def vector_tap(taps: Mapping[str, Tap]) -> str:
    """Return the tap of the image's vector: the class token, the pooled patches, or a CNN's deepest map to pool."""
    return next((name for name in ("cls", "pooled") if name in taps), None) or deepest_encoder_tap(taps)


def patch_tap(taps: Mapping[str, Tap], method: str) -> Tap:
    """Return the tap of the ViT's patches; raise `ModelError` if there is none."""
    if "patches" not in taps:
        raise ModelError(
            f"{method} needs the patches of a ViT, but the model has only {', '.join(taps)}; choose a ViT, such as "
            "'timm/vit_small_patch16_224'."
        )
    return taps["patches"]


def multi_crop(
    taps: Mapping[str, Tap],
    image_size: Size,
    global_scale: Scale,
    local_crops: int,
    local_size: Size,
    local_scale: Scale,
    *,
    blur_px: float = 2.0,
    masks: MaskSpec | None = None,
) -> ViewPlan:
    """Return DINO's views: two global views, the second solarised and rarely blurred, and local views.

    Raises:
        OptionsError: If a side is not a multiple of the model's patch size.
    """
    if "patches" in taps:
        patch = taps["patches"].stride
        for option, size in (("image_size", image_size), ("local_size", local_size)):
            if any(side % patch for side in sides(size)):
                nearest = size_in_words(multiple_of(size, patch))
                raise OptionsError(
                    f"{option} {size_in_words(size)} is not a multiple of the model's patch size {patch}; set it to "
                    f"{nearest}."
                )
    if isinstance(local_size, int):
        local_size = with_aspect_of(local_size, image_size, max(tap.stride for tap in taps.values()))
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
    """Return DINO's optimiser: AdamW, rising weight decay, clipping per tensor, prototypes frozen at first."""
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
    image_size: Size = 224,
    global_scale: Scale = (0.4, 1.0),
    local_crops: int = 8,
    local_size: Size = 96,
    local_scale: Scale = (0.05, 0.4),
    blur_px: float = 2.0,
    reference_timm_positions: bool = False,
) -> Recipe:
    """Return a recipe that trains its terms like DINO.

    Args:
        name: Name of the recipe.
        taps: Taps of the model.
        terms: Terms of the loss.
        epochs: Number of epochs in the paper.
        masks: Masks of the global views.
        momentum: Initial momentum of the teacher; rises to 1 with a cosine schedule.
        base_lr: Learning rate for a batch of 256 (AdamW).
        final_lr: Final learning rate of the cosine schedule; it is not scaled with the batch size.
        weight_decay: Initial weight decay of tensors with more than one dimension.
        final_weight_decay: Final value of the cosine schedule of the weight decay.
        warmup_epochs: Number of epochs of linear warm-up, starting from 0.
        clip_norm: Maximum gradient norm of each tensor.
        frozen_epochs: Number of epochs at the start of the run for which the prototypes are frozen.
        image_size: Side length of the two global views in pixels, or height x width, such as 64x128.
        global_scale: Range of the fraction of the image area that a global view covers.
        local_crops: Number of local views.
        local_size: Side length of local views in pixels, or height x width. If the global views are not square, a
            single number is the shorter side of local views with the same aspect ratio, and the longer side is rounded
            to a multiple of the model's coarsest stride.
        local_scale: Range of the fraction of the image area that a local view covers.
        blur_px: Maximum standard deviation of the blur in pixels of the view; 2 is meant for views of 224 px, 0
            disables blur.
        reference_timm_positions: Resample position embeddings to the size of local views with antialiasing, as timm
            does; if false, without antialiasing, as in the official code.
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
