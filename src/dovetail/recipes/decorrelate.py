"""Image-level methods that decorrelate channels or whiten: Barlow Twins, ZeroCL, VICReg.

Each uses the settings of its paper for ImageNet. The head is 8192 wide. A narrower head saves memory and costs some
accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from dovetail.heads.vector import VectorHeadSpec
from dovetail.objectives.decorrelate import BarlowSpec, VICRegSpec
from dovetail.objectives.whiten import ZeroCLSpec
from dovetail.recipe import EncoderInit, Recipe, Tap, Term
from dovetail.recipes.image_parts import BYOL_PAIR, image_tap, lars, pair_views
from dovetail.recipes.shared import with_options_of
from dovetail.views.plan import Photometric


@with_options_of(pair_views)
def barlow(
    taps: Mapping[str, Tap],
    *,
    hidden: int = 8192,
    dim: int = 8192,
    off_diagonal_weight: float = 0.0051,
    loss_scale: float = 1.0,
    base_lr: float = 0.2,
    bias_lr: float = 0.0048,
    weight_decay: float = 1.5e-6,
    warmup_epochs: float = 10.0,
    **views: Any,
) -> Recipe:
    """Return Barlow Twins (arXiv 2103.03230).

    Args:
        taps: Taps of the model.
        hidden: Width of the head's two hidden layers.
        dim: Width of the embedding.
        off_diagonal_weight: Weight of correlations between different channels, lambda.
        loss_scale: Factor of the loss; solo-learn uses 0.024 or 0.1.
        base_lr: Learning rate of weights for a batch of 256 (LARS), above 0; decays to a thousandth with a cosine
            schedule.
        bias_lr: Learning rate of biases and normalisation layers.
        weight_decay: Weight decay of tensors with more than one dimension.
        warmup_epochs: Number of epochs of linear warm-up, starting from 0.
    """
    return Recipe(
        name="barlow",
        encoder_init=EncoderInit(zero_gamma=True),
        terms=(Term("encoder", image_tap(taps), wide_head(hidden, dim), BarlowSpec(off_diagonal_weight, loss_scale)),),
        views=pair_views(*BYOL_PAIR, **views),
        optimiser=lars(base_lr, weight_decay, warmup_epochs=warmup_epochs, bias_lr=bias_lr, final_share=0.001),
        teacher_momentum=None,
        export="student",
        epochs=1000,
        batch_size=2048,
    )


@with_options_of(pair_views)
def zerocl(
    taps: Mapping[str, Tap],
    *,
    hidden: int = 8192,
    dim: int = 8192,
    mode: Literal["both", "feature", "instance"] = "both",
    base_lr: float = 0.3,
    bias_lr: float = 0.0048,
    weight_decay: float = 1e-6,
    warmup_epochs: float = 10.0,
    **views: Any,
) -> Recipe:
    """Return ZeroCL (ICLR 2022), with the optimiser of the authors' code and the views of Barlow Twins.

    Args:
        taps: Taps of the model.
        hidden: Width of the head's two hidden layers.
        dim: Width of the embedding.
        mode: Whiten features, instances, or both; see `dovetail.objectives.whiten`.
        base_lr: Learning rate of weights for a batch of 256 (LARS), above 0; decays to 0 with a cosine schedule.
        bias_lr: Learning rate of biases and normalisation layers.
        weight_decay: Weight decay of tensors with more than one dimension.
        warmup_epochs: Number of epochs of linear warm-up, starting from 0.
    """
    return Recipe(
        name="zerocl",
        terms=(Term("encoder", image_tap(taps), wide_head(hidden, dim), ZeroCLSpec(mode)),),
        views=pair_views(*BYOL_PAIR, **views),
        optimiser=lars(base_lr, weight_decay, warmup_epochs=warmup_epochs, bias_lr=bias_lr),
        teacher_momentum=None,
        export="student",
        epochs=400,
        batch_size=256,
    )


@with_options_of(pair_views)
def vicreg(
    taps: Mapping[str, Tap],
    *,
    hidden: int = 8192,
    dim: int = 8192,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    variance_scale: float = 1.0,
    base_lr: float = 0.2,
    bias_lr: float | None = None,
    weight_decay: float = 1e-6,
    warmup_epochs: float = 10.0,
    **views: Any,
) -> Recipe:
    """Return VICReg (arXiv 2105.04906), with the paper's symmetric views.

    Args:
        taps: Taps of the model.
        hidden: Width of the head's two hidden layers.
        dim: Width of the embedding.
        invariance_weight: Weight of the mean squared difference of the views.
        variance_weight: Weight of the hinge loss on each channel's standard deviation.
        covariance_weight: Weight of the squared covariances of different channels.
        variance_scale: 1 sums the variance terms of both views (the paper), 0.5 takes their mean (its code).
        base_lr: Learning rate for a batch of 256 (LARS); decays to an 800th with a cosine schedule.
        bias_lr: Learning rate of biases and normalisation layers, which LARS does not scale; null uses the base
            learning rate.
        weight_decay: Weight decay of tensors with more than one dimension.
        warmup_epochs: Number of epochs of linear warm-up, starting from 0.
    """
    objective = VICRegSpec(invariance_weight, variance_weight, covariance_weight, variance_scale)
    return Recipe(
        name="vicreg",
        terms=(Term("encoder", image_tap(taps), wide_head(hidden, dim), objective),),
        views=pair_views(Photometric(blur_p=0.5, solarise_p=0.1), **views),
        # The final share is 0.002 at the paper's batch of 2048.
        optimiser=lars(base_lr, weight_decay, warmup_epochs=warmup_epochs, bias_lr=bias_lr, final_share=0.00125),
        teacher_momentum=None,
        export="student",
        epochs=1000,
        batch_size=2048,
    )


def wide_head(hidden: int, dim: int) -> VectorHeadSpec:
    """Return the three-layer head of Barlow Twins, which VICReg and ZeroCL share."""
    return VectorHeadSpec(hidden, dim, layers=3, bias=False)
