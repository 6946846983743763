"""SlotCon (arXiv 2205.15288): group pixels into slots shared by both views, and contrast the slots.

Settings of the official code for COCO; 2048 prototypes for ImageNet. Expected: Mask R-CNN R50-FPN 1x on COCO, box/mask
AP 41.0/37.0 after COCO-800 epochs, 41.4/37.2 after ImageNet-100, 41.8/37.8 after ImageNet-200 (official README).
Departures from the official code: see `dovetail.objectives.slots`.
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
        taps: The model's taps.
        hidden: Width of the projector's and the slot predictor's hidden layers.
        dim: Width of the embedding.
        prototypes: Number of slots.
        group_weight: Weight of the group loss, in [0, 1]; the slot loss has the rest.
        student_temperature: Of the student's scores in the group loss.
        teacher_temperature: Of the teacher's scores, and of the grouping.
        contrast_temperature: Of the slot loss.
        momentum: The teacher's at the start; a cosine takes it to 1.
        base_lr: Learning rate at a batch of 256 (LARS).
        bias_lr: The same of biases and normalisation layers, which LARS does not adapt; None for base_lr.
        weight_decay: Of tensors with more than one dimension.
        warmup_epochs: Linear warm-up from a hundredth of the peak.
        grid: Pool maps with more cells on a side to it; None keeps them.
        reference_disjoint_crops: See `dovetail.objectives.slots`.
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
