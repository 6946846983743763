"""DenseCL (arXiv 2011.09157) and PixPro (arXiv 2011.10043): contrast and consistency of single cells of a map.

Expected for a ResNet-50 (official READMEs): DenseCL, VOC detection AP and segmentation mIoU, 56.7 / 67.5 after
COCO-800 and 58.7 / 69.4 after ImageNet-200 epochs; PixPro, Mask R-CNN FPN 1x on COCO, box and mask AP, 40.8 / 36.8
after ImageNet-100 epochs, with the instance branch 41.3 / 37.1 after 100 and 41.4 / 37.4 after 400.
Differences from the official code: see `dovetail.objectives.dense` and `dovetail.objectives.pixels`.

Cost: at 224 pixels c5 has 49 cells. The cost grows linearly with the number of cells, and quadratically for pairs of
cells. `grid` pools maps before the head.
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
    """Return DenseCL on the encoder's deepest map, with the settings for COCO. Use base_lr 0.03 for ImageNet.

    The student's encoder is exported, as by the official converter.

    Args:
        taps: Taps of the model.
        hidden: Width of the hidden layer of both heads.
        dim: Width of the embedding.
        temperature: Temperature of the dense and the global contrastive term.
        queue: Number of keys in each of the two queues (dense and global).
        dense_weight: Weight of the dense term, in [0, 1]; the global term gets the remaining weight.
        cell_negatives: Use other cells of the same image as negatives if they are at least this far away, as a fraction
            of the side of the source image. 0 disables such negatives, as in the published loss; 0.2 is about the size
            of an object.
        momentum: Momentum of the teacher, constant.
        base_lr: Learning rate for a batch of 256 (SGD); decays to 0 with a cosine schedule.
        weight_decay: Weight decay of all parameters.
        grid: Maximum number of cells per side; larger maps are average-pooled to it. null disables pooling.
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

    The student's encoder is exported, as by the official converters of PixPro and DenseCL. SlotCon exports the
    teacher's.

    Args:
        taps: Taps of the model.
        hidden: Width of the hidden layer of the projectors and the instance predictor.
        dim: Width of the embedding.
        distance: Maximum distance of positive pairs, as a fraction of the diagonal of the larger cell.
        gamma: Exponent of the similarities in the pixel propagation.
        transform_layers: Number of 1x1 convolutions of the pixel propagation.
        instance_weight: Weight of the image-level term; 0 removes the term and its projector.
        momentum: Initial momentum of the teacher; rises to 1 with a cosine schedule.
        base_lr: Learning rate for a batch of 256 (LARS).
        bias_lr: Learning rate of biases and normalisation layers, which LARS does not scale; null uses the base
            learning rate.
        weight_decay: Weight decay of tensors with more than one dimension.
        warmup_epochs: Number of epochs of linear warm-up, starting from a hundredth of the peak learning rate.
        grid: Maximum number of cells per side; larger maps are average-pooled to it. null disables pooling.
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
