"""DenseCL (arXiv 2011.09157) and PixPro (arXiv 2011.10043): contrast and consistency of single cells of a map.

Expected for ResNet-50 by the official READMEs: DenseCL, VOC detection AP and segmentation mIoU, 56.7 / 67.5 after
COCO-800 and 58.7 / 69.4 after ImageNet-200 epochs; PixPro, Mask R-CNN FPN 1x on COCO, box and mask AP, 40.8 / 36.8
after ImageNet-100 epochs, with the instance branch 41.3 / 37.1 after 100 and 41.4 / 37.4 after 400.
Departures from the official codes: see `dovetail.objectives.dense` and `dovetail.objectives.pixels`.

Cost at 224 pixels: c5 has 49 cells. A finer map costs as many times more, and its pairs of cells the square of it;
`grid` pools maps before the head.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dovetail.heads.dense import DenseHeadSpec, PixelHeadSpec
from dovetail.networks.network import deepest_encoder_tap
from dovetail.objectives.dense import DenseContrastSpec
from dovetail.objectives.pixels import PixelConsistencySpec
from dovetail.recipe import Cells, EncoderInit, OptimiserSpec, Recipe, Tap, Term
from dovetail.recipes.image_parts import BYOL_PAIR, MOCO_VIEW, lars, pair_views
from dovetail.recipes.shared import with_options_of
from dovetail.schedules import Cosine


@with_options_of(pair_views, min_scale=0.2)
def densecl(
    taps: Mapping[str, Tap],
    *,
    hidden: int = 2048,
    dim: int = 128,
    temperature: float = 0.2,
    queue: int = 65536,
    dense_weight: float = 0.5,
    cell_negatives: float = 0.0,
    momentum: float = 0.999,
    base_lr: float = 0.3,
    weight_decay: float = 1e-4,
    grid: int | None = None,
    **views: Any,
) -> Recipe:
    """Return DenseCL on the encoder's deepest map, with the settings for COCO; base_lr is 0.03 for ImageNet.

    The student's encoder is exported, as by the official converter.

    Args:
        taps: The model's taps.
        hidden: Width of both heads' hidden layer.
        dim: Width of the embedding.
        temperature: Of both contrastive terms.
        queue: Keys in each of the two queues.
        dense_weight: Weight of the dense term, in [0, 1]; the global one has the rest.
        cell_negatives: Also tell each cell from cells of its own image that lie at least this far apart, in sides of
            the source image; 0 for the published loss, 0.2 is about the size of an object.
        momentum: The teacher's, constant.
        base_lr: Learning rate at a batch of 256 (SGD); a cosine takes it to 0.
        weight_decay: Of all parameters.
        grid: Pool maps with more cells on a side to it; None keeps them.
    """
    objective = DenseContrastSpec(
        temperature=temperature, queue=queue, dense_weight=dense_weight, cell_negatives=cell_negatives
    )
    head, cells = DenseHeadSpec(hidden, dim), Cells(grid=grid)
    return Recipe(
        name="densecl",
        encoder_init=EncoderInit(fan="in", zero_gamma=False),
        terms=(Term("encoder", deepest_encoder_tap(taps), head, objective, cells=cells),),
        views=pair_views(MOCO_VIEW, interpolation="bilinear", **views),
        optimiser=OptimiserSpec("sgd", base_lr=base_lr, weight_decay=weight_decay),
        teacher_momentum=momentum,
        export="student",
        epochs=800,
        batch_size=256,
        shuffle_batch_norm=True,
    )


@with_options_of(pair_views)
def pixpro(
    taps: Mapping[str, Tap],
    *,
    hidden: int = 4096,
    dim: int = 256,
    distance: float = 0.7,
    gamma: float = 2.0,
    transform_layers: int = 1,
    instance_weight: float = 0.0,
    momentum: float = 0.99,
    base_lr: float = 1.0,
    bias_lr: float | None = None,
    weight_decay: float = 1e-5,
    warmup_epochs: float = 5.0,
    grid: int | None = None,
    **views: Any,
) -> Recipe:
    """Return PixPro on the encoder's deepest map, with the settings for 100 epochs of ImageNet.

    The student's encoder is exported, as by the official converter. DenseCL's does the same, SlotCon's takes the
    teacher's.

    Args:
        taps: The model's taps.
        hidden: Width of the projectors' and the instance predictor's hidden layer.
        dim: Width of the embedding.
        distance: Cells nearer than this share of the larger cell's diagonal are positive pairs.
        gamma: Exponent of the similarities in the pixel propagation.
        transform_layers: 1x1 convolutions of the pixel propagation.
        instance_weight: Weight of the image-level term; 0 leaves it and its projector out.
        momentum: The teacher's at the start; a cosine takes it to 1.
        base_lr: Learning rate at a batch of 256 (LARS).
        bias_lr: The same of biases and normalisation layers, which LARS does not adapt; None for base_lr.
        weight_decay: Of tensors with more than one dimension.
        warmup_epochs: Linear warm-up from a hundredth of the peak.
        grid: Pool maps with more cells on a side to it; None keeps them.
    """
    objective = PixelConsistencySpec(
        distance=distance, gamma=gamma, transform_layers=transform_layers, instance_weight=instance_weight
    )
    head = PixelHeadSpec(hidden=hidden, dim=dim, instance=instance_weight > 0)
    return Recipe(
        name="pixpro",
        encoder_init=EncoderInit(zero_gamma=True),
        terms=(Term("encoder", deepest_encoder_tap(taps), head, objective, cells=Cells(grid=grid)),),
        views=pair_views(*BYOL_PAIR, "bilinear", **views),
        optimiser=lars(
            base_lr, weight_decay, warmup_epochs=warmup_epochs, bias_lr=bias_lr, warmup_start=0.01, final_lr=1e-6
        ),
        teacher_momentum=Cosine(momentum, 1.0),
        export="student",
        epochs=100,
        batch_size=1024,
    )


METHODS: dict[str, Callable[..., Recipe]] = {"densecl": densecl, "pixpro": pixpro}
