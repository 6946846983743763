"""SlotCon (arXiv 2205.15288): group pixels into slots shared by both views, and contrast the slots.

Defaults follow the official code for COCO. Use 2048 prototypes for ImageNet. Expected: Mask R-CNN R50-FPN 1x on COCO,
box/mask AP 41.0/37.0 after COCO-800 epochs, 41.4/37.2 after ImageNet-100, 41.8/37.8 after ImageNet-200 (official
README). Differences from the official code: see `dovetail.objectives.slots`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dovetail.heads.slots import SlotHeadSpec
from dovetail.networks.network import deepest_encoder_tap
from dovetail.objectives.slots import SlotSpec
from dovetail.recipe import Cells, EncoderInit, Recipe, Tap, Term
from dovetail.recipes.image_parts import BYOL_PAIR, lars, pair_views
from dovetail.recipes.shared import with_options_of
from dovetail.schedules import Cosine


@with_options_of(pair_views)
def slotcon(
    taps: Mapping[str, Tap],
    *,
    hidden: int = 4096,
    dim: int = 256,
    prototypes: int = 256,
    group_weight: float = 0.5,
    student_temperature: float = 0.1,
    teacher_temperature: float = 0.07,
    contrast_temperature: float = 0.2,
    momentum: float = 0.99,
    base_lr: float = 1.0,
    bias_lr: float | None = None,
    weight_decay: float = 1e-5,
    warmup_epochs: float = 5.0,
    grid: int | None = None,
    reference_disjoint_crops: bool = False,
    **views: Any,
) -> Recipe:
    """Return SlotCon on the encoder's deepest map.

    Args:
        taps: Taps of the model.
        hidden: Width of the hidden layers of the projector and the slot predictor.
        dim: Width of the embedding.
        prototypes: Number of prototypes (slots).
        group_weight: Weight of the group loss, in [0, 1]; the slot loss gets the remaining weight.
        student_temperature: Temperature of the student's scores in the group loss.
        teacher_temperature: Temperature of the teacher's scores and of the grouping of cells into slots.
        contrast_temperature: Temperature of the slot loss.
        momentum: Initial momentum of the teacher; rises to 1 with a cosine schedule.
        base_lr: Learning rate for a batch of 256 (LARS).
        bias_lr: Learning rate of biases and normalisation layers, which LARS does not scale; null uses the base
            learning rate.
        weight_decay: Weight decay of tensors with more than one dimension.
        warmup_epochs: Number of epochs of linear warm-up, starting from a hundredth of the peak learning rate.
        grid: Maximum number of cells per side; larger maps are average-pooled to it. null disables pooling.
        reference_disjoint_crops: In the group loss, include images whose crops do not overlap, as in the official code;
            see `dovetail.objectives.slots`.
    """
    objective = SlotSpec(
        student_temperature=student_temperature,
        teacher_temperature=teacher_temperature,
        grouping_temperature=teacher_temperature,
        contrast_temperature=contrast_temperature,
        group_weight=group_weight,
        predictor_hidden=hidden,
        reference_disjoint_crops=reference_disjoint_crops,
    )
    head = SlotHeadSpec(hidden=hidden, dim=dim, prototypes=prototypes)
    return Recipe(
        name="slotcon",
        encoder_init=EncoderInit(zero_gamma=True),
        terms=(Term("encoder", deepest_encoder_tap(taps), head, objective, cells=Cells(grid=grid)),),
        views=pair_views(*BYOL_PAIR, min_overlap=0.01, **views),
        optimiser=lars(
            base_lr, weight_decay, warmup_epochs=warmup_epochs, bias_lr=bias_lr, warmup_start=0.01, final_lr=1e-6
        ),
        teacher_momentum=Cosine(momentum, 1.0),
        epochs=800,
        batch_size=512,
    )


METHODS = {"slotcon": slotcon}
