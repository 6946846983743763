"""DINO (arXiv 2104.14294), iBOT (2111.07832) and SelfPatch (2206.07990): self-distillation of a ViT's tokens.

DINO also trains CNNs, on the mean of their deepest map. The other methods need a ViT's patches.

Expected on ImageNet-1k (official READMEs), k-NN / linear probe: DINO ViT-S/16 after 100 epochs 69.3 / 74.0, after
800 epochs with 10 local crops 74.5 / 77.0, ViT-B/16 76.1 / 78.2; iBOT ViT-S/16 75.2 / 77.9, ViT-B/16 77.1 / 79.5.
SelfPatch ViT-S/16: COCO Mask R-CNN 1x, box and mask AP, 42.1 / 38.5.

Defaults follow the official code for ViT-S/16. Stochastic depth, 0.1 in the official student, is an option of the
model: `build_vit(..., drop_path=0.1)`. Views of the same size pass through the network together, as in the official
code.

Cost at 65,536 prototypes and 64 images: 10 student views need 168 MB of float32 logits. iBOT's patches at 8,192
prototypes need 822 MB for two views. Use fewer prototypes for a smaller dataset.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

from dovetail.heads.aggregate import SelfPatchHeadSpec
from dovetail.heads.prototypes import PATCH_OUTPUT, PooledPrototypeHeadSpec, PrototypeHeadSpec
from dovetail.objectives.distill import DistillSpec
from dovetail.objectives.patches import MaskedPatchSpec, SelfPatchSpec
from dovetail.recipe import Recipe, SameHead, Tap, Term
from dovetail.recipes.shared import with_options_of
from dovetail.recipes.token_parts import Scale, patch_tap, self_distilled, vector_tap
from dovetail.schedules import LinearByEpoch
from dovetail.views.plan import MaskSpec


@with_options_of(self_distilled)
def dino(
    taps: Mapping[str, Tap],
    *,
    hidden: int = 2048,
    bottleneck: int = 256,
    prototypes: int = 65536,
    head_norm: bool = False,
    learned_magnitude: bool = False,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    warmup_temperature: float = 0.04,
    warmup_temperature_epochs: int = 0,
    centre_momentum: float = 0.9,
    **training: Any,
) -> Recipe:
    """Return DINO on the class token, on the pooled patches of a ViT without one, or on a CNN's pooled deepest map.

    Args:
        taps: Taps of the model.
        hidden: Width of the head's hidden layers.
        bottleneck: Width of the embedding before the prototypes.
        prototypes: Number of prototypes.
        head_norm: BatchNorm in the head, for convolutional encoders.
        learned_magnitude: Learn the norms of the prototypes (`norm_last_layer=False` in the official code); this is
            better for ViT-S, but less stable.
        student_temperature: Temperature of the student's softmax.
        teacher_temperature: Temperature of the teacher's softmax after warm-up; use up to 0.07 with a warm-up of 30
            epochs.
        warmup_temperature: Initial temperature of the teacher's softmax.
        warmup_temperature_epochs: Number of epochs over which the teacher's temperature rises linearly from
            `warmup_temperature` to `teacher_temperature`.
        centre_momentum: Momentum of the centre of the teacher's logits.
    """
    tap = vector_tap(taps)
    head_of = PooledPrototypeHeadSpec if taps[tap].kind == "map" else PrototypeHeadSpec
    head = head_of(
        hidden=hidden,
        bottleneck=bottleneck,
        prototypes=prototypes,
        norm=head_norm,
        learned_magnitude=learned_magnitude,
    )
    warming = LinearByEpoch(warmup_temperature, teacher_temperature, warmup_temperature_epochs)
    objective = DistillSpec(student_temperature, warming, centre_momentum)
    terms = (Term("cls", tap, head, objective, roles=("global", "local")),)
    return self_distilled("dino", taps, terms, 100, **training)


@with_options_of(self_distilled, global_scale=(0.25, 1.0), local_crops=10, local_scale=(0.05, 0.25))
def ibot(
    taps: Mapping[str, Tap],
    *,
    hidden: int = 2048,
    bottleneck: int = 256,
    prototypes: int = 8192,
    head_norm: bool = False,
    shared_head: bool = True,
    patch_prototypes: int = 8192,
    learned_magnitude: bool = True,
    cls_weight: float = 1.0,
    patch_weight: float = 1.0,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.07,
    teacher_patch_temperature: float = 0.07,
    warmup_temperature: float = 0.04,
    warmup_temperature_epochs: int = 30,
    centre_momentum: float = 0.9,
    patch_centre_momentum: float = 0.9,
    mask_share: Scale = (0.1, 0.5),
    mask_p: float = 0.5,
    mask_shape: Literal["block", "random"] = "block",
    mask_start_epoch: int = 0,
    **training: Any,
) -> Recipe:
    """Return iBOT: DINO on the class token, and prediction of the teacher's output for masked patches of global views.

    Local views are never masked; only their class tokens are compared.

    Args:
        taps: Taps of the model.
        hidden: Width of the head's hidden layers.
        bottleneck: Width of the embedding before the prototypes.
        prototypes: Number of prototypes of the class token, and of patches with a shared head.
        head_norm: BatchNorm in the head.
        shared_head: Share the prototypes between class token and patches. If False, they share the rest of the head.
        patch_prototypes: Number of prototypes of patches, if they have their own.
        learned_magnitude: Learn the norms of the prototypes (`norm_last_layer=False` in the official code).
        cls_weight: Weight of the class token's term.
        patch_weight: Weight of the masked patches' term.
        student_temperature: Temperature of the student's softmax.
        teacher_temperature: Temperature of the teacher's softmax on class tokens, after warm-up.
        teacher_patch_temperature: Temperature of the teacher's softmax on patches, after warm-up.
        warmup_temperature: Temperature of the teacher's softmax on class tokens and patches in the first epoch.
        warmup_temperature_epochs: Number of epochs over which both temperatures rise linearly from
            `warmup_temperature`; for patches, these epochs start at `mask_start_epoch`.
        centre_momentum: Momentum of the centre of the teacher's class logits.
        patch_centre_momentum: Momentum of the centre of the teacher's patch logits.
        mask_share: Range of the fraction of masked patches, drawn uniformly for each image and view.
        mask_p: Probability that a view of an image is masked.
        mask_shape: "block" masks blocks of patches, "random" single patches.
        mask_start_epoch: First epoch with masks.
    """
    patches = patch_tap(taps, "iBOT")
    head = PrototypeHeadSpec(
        hidden=hidden,
        bottleneck=bottleneck,
        prototypes=prototypes,
        norm=head_norm,
        learned_magnitude=learned_magnitude,
        patch_prototypes=0 if shared_head else patch_prototypes,
    )
    warming = LinearByEpoch(warmup_temperature, teacher_temperature, warmup_temperature_epochs)
    patch_warming = LinearByEpoch(
        warmup_temperature, teacher_patch_temperature, warmup_temperature_epochs, delay_epochs=mask_start_epoch
    )
    cls = DistillSpec(student_temperature, warming, centre_momentum)
    masked = MaskedPatchSpec(student_temperature, patch_warming, patch_centre_momentum)
    same_head = SameHead("cls", "" if shared_head else PATCH_OUTPUT)
    masks = MaskSpec(
        patch_px=patches.stride, share=mask_share, p=mask_p, shape=mask_shape, start_epoch=mask_start_epoch
    )
    terms = (
        Term("cls", vector_tap(taps), head, cls, weight=cls_weight, roles=("global", "local")),
        Term("patches", "patches", same_head, masked, weight=patch_weight),
    )
    return self_distilled("ibot", taps, terms, 800, masks, **training)


@with_options_of(self_distilled, global_scale=(0.25, 1.0), local_scale=(0.05, 0.25))
def selfpatch(
    taps: Mapping[str, Tap],
    *,
    hidden: int = 2048,
    bottleneck: int = 256,
    prototypes: int = 65536,
    patch_prototypes: int = 4096,
    head_norm: bool = False,
    learned_magnitude: bool = False,
    neighbours: int = 4,
    aggregation_blocks: int = 2,
    head_channels: int = 64,
    head_init_std: float = 0.02,
    reference_wraparound: bool = False,
    patch_weight: float = 0.1,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.04,
    warmup_temperature: float = 0.04,
    warmup_temperature_epochs: int = 0,
    centre_momentum: float = 0.9,
    **training: Any,
) -> Recipe:
    """Return SelfPatch over DINO: each patch predicts the teacher's aggregate of its most similar neighbours.

    Patches are read before the final norm, and the head computes the image's vector, because the official ViT has
    neither a class token nor a final norm. If the model has a class token, it takes part in attention but not in the
    loss. The teacher also processes local views.

    Args:
        taps: Taps of the model.
        hidden: Width of the hidden layers of both heads.
        bottleneck: Width of the embeddings before the prototypes.
        prototypes: Number of prototypes of images.
        patch_prototypes: Number of prototypes of patches.
        head_norm: BatchNorm in the heads.
        learned_magnitude: Learn the norms of the prototypes (`norm_last_layer=False` in the official code).
        neighbours: Number of adjacent patches, out of up to 8, that form the target of a patch.
        aggregation_blocks: Number of class-attention blocks in the head.
        head_channels: Channels per attention head of these blocks.
        head_init_std: Standard deviation of the initial linear layers of these blocks; a ViT of 64 channels needs
            0.125.
        reference_wraparound: Take the neighbours of border patches from the opposite border, as the official code does.
        patch_weight: Weight of the loss on patches.
        student_temperature: Temperature of the student's softmax.
        teacher_temperature: Temperature of the teacher's softmax after warm-up.
        warmup_temperature: Initial temperature of the teacher's softmax.
        warmup_temperature_epochs: Number of epochs over which the teacher's temperature rises linearly from
            `warmup_temperature` to `teacher_temperature`.
        centre_momentum: Momentum of both centres of the teacher's logits; local views update them too.
    """
    patch_tap(taps, "SelfPatch")
    cls = PrototypeHeadSpec(
        hidden=hidden,
        bottleneck=bottleneck,
        prototypes=prototypes,
        norm=head_norm,
        learned_magnitude=learned_magnitude,
    )
    patch = replace(cls, prototypes=patch_prototypes)
    head = SelfPatchHeadSpec(
        cls, patch, neighbours, aggregation_blocks, head_channels, reference_wraparound, init_std=head_init_std
    )
    warming = LinearByEpoch(warmup_temperature, teacher_temperature, warmup_temperature_epochs)
    objective = SelfPatchSpec(student_temperature, warming, centre_momentum, patch_weight)
    terms = (Term("patches", "patches_prenorm", head, objective, roles=("global", "local")),)
    recipe = replace(self_distilled("selfpatch", taps, terms, 300, **training), teacher_views=("global", "local"))
    sizes = {view.sides for view in recipe.views.views}
    if all(height == width for height, width in sizes):
        return recipe
    patch_px = taps["patches"].stride
    grids = tuple(sorted((height // patch_px, width // patch_px) for height, width in sizes))
    return replace(recipe, terms=(replace(terms[0], head=replace(head, grids=grids)),))


METHODS: dict[str, Callable[..., Recipe]] = {"dino": dino, "ibot": ibot, "selfpatch": selfpatch}
