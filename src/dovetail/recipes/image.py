"""Image-level methods: one vector for each view, one term on the encoder's deepest map or a ViT's class token.

Each uses the settings of its paper for ImageNet, and those of the public code where the paper leaves them open. Linear
evaluation of a ResNet-50 on ImageNet, top-1 (papers and READMEs of their code): SimCLR 69.1, MoCo v2 67.5 (200
epochs), MoCo v3 72.8 (300; ViT-S/16 73.2, ViT-B/16 76.7), BYOL 74.3, SimSiam 68.1 (100), Barlow Twins 73.2 (1000),
VICReg 73.2 (1000).

All export the student's encoder, as the public code does. The head receives the average over the cells of a map, so the
same term also works on any map of a decoder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from dovetail.heads.vector import VectorHeadSpec
from dovetail.objectives.contrast import KeyContrastSpec, NTXentSpec, QueueContrastSpec
from dovetail.objectives.regress import RegressSpec
from dovetail.objectives.vector import PredictorSpec
from dovetail.recipe import EncoderInit, OptimiserSpec, ParameterRule, Recipe, Tap, Term
from dovetail.recipes.decorrelate import barlow, vicreg, zerocl
from dovetail.recipes.image_parts import BYOL_PAIR, MOCO_VIEW, given, image_tap, lars, one_dimensional_rate, pair_views
from dovetail.recipes.shared import with_options_of
from dovetail.schedules import Cosine
from dovetail.sizes import Size
from dovetail.views.plan import Photometric


@with_options_of(pair_views)
def simclr(
    taps: Mapping[str, Tap],
    *,
    hidden: int = 2048,
    dim: int = 128,
    temperature: float = 0.1,
    base_lr: float = 0.3,
    bias_lr: float | None = None,
    weight_decay: float = 1e-6,
    warmup_epochs: float = 10.0,
    jitter: float = 1.0,
    rows_per_block: int | None = 1024,
    **views: Any,
) -> Recipe:
    """Return SimCLR (arXiv 2002.05709).

    BatchNorm sees both views together and also follows the head's last layer, as in the authors' code.

    Args:
        taps: Taps of the model.
        hidden: Width of the head's hidden layer.
        dim: Width of the embedding.
        temperature: Temperature of the cosine similarities.
        base_lr: Learning rate for a batch of 256 (LARS).
        bias_lr: Learning rate of biases and normalisation layers, which LARS does not scale; null uses the base
            learning rate.
        weight_decay: Weight decay of tensors with more than one dimension.
        warmup_epochs: Number of epochs of linear warm-up, starting from 0.
        jitter: Strength of the colour jitter.
        rows_per_block: Number of anchors whose similarities are in memory at a time; null keeps all.
    """
    head = VectorHeadSpec(hidden, dim, bias=False, last_norm="affine")
    view = Photometric(0.8 * jitter, 0.8 * jitter, 0.8 * jitter, 0.2 * jitter)
    return Recipe(
        name="simclr",
        terms=(Term("encoder", image_tap(taps), head, NTXentSpec(temperature, rows_per_block=rows_per_block)),),
        views=pair_views(view, **views),
        optimiser=lars(base_lr, weight_decay, warmup_epochs=warmup_epochs, bias_lr=bias_lr),
        teacher_momentum=None,
        forward_views="per_size",
        export="student",
        epochs=1000,
        batch_size=4096,
    )


@with_options_of(pair_views, min_scale=0.2)
def moco_v2(
    taps: Mapping[str, Tap],
    *,
    hidden: int = 2048,
    dim: int = 128,
    temperature: float = 0.2,
    queue: int = 65536,
    symmetric: bool = False,
    momentum: float = 0.999,
    base_lr: float = 0.03,
    weight_decay: float = 1e-4,
    **views: Any,
) -> Recipe:
    """Return MoCo v2 (arXiv 2003.04297): no BatchNorm in the head, shuffled BatchNorm in the teacher.

    Args:
        taps: Taps of the model.
        hidden: Width of the head's hidden layer.
        dim: Width of the embedding.
        temperature: Temperature of the cosine similarities.
        queue: Number of keys in the queue.
        symmetric: Use both views as queries, each with its own queue; the paper uses one direction.
        momentum: Momentum of the teacher, constant.
        base_lr: Learning rate for a batch of 256 (SGD); decays to 0 with a cosine schedule.
        weight_decay: Weight decay of all parameters.
    """
    head = VectorHeadSpec(hidden, dim, norm=False)
    objective = QueueContrastSpec(temperature, queue, symmetric)
    return Recipe(
        name="moco-v2",
        encoder_init=EncoderInit(zero_gamma=False),
        terms=(Term("encoder", image_tap(taps), head, objective),),
        views=pair_views(MOCO_VIEW, interpolation="bilinear", **views),
        optimiser=OptimiserSpec("sgd", base_lr=base_lr, weight_decay=weight_decay),
        teacher_momentum=momentum,
        export="student",
        epochs=200,
        batch_size=256,
        shuffle_batch_norm=True,
    )


def moco_v3(
    taps: Mapping[str, Tap],
    *,
    hidden: int = 4096,
    dim: int = 256,
    temperature: float | None = None,
    momentum: float = 0.99,
    base_lr: float | None = None,
    bias_lr: float | None = None,
    weight_decay: float | None = None,
    warmup_epochs: float | None = None,
    frozen_patches: bool = True,
    rows_per_block: int | None = 1024,
    image_size: Size = 224,
    min_scale: float | None = None,
    blur_px: float = 2.0,
) -> Recipe:
    """Return MoCo v3 (arXiv 2104.02057), for a ViT if the model has a vector tap, otherwise for a convolutional
    network.

    The paper has two recipes. Arguments that are None default to the recipe for the model:

        network   optimiser  base_lr  weight_decay  warmup_epochs  temperature  min_scale  head    predictor's last norm
        ViT       AdamW      1.5e-4   0.1           40             0.2          0.08       3 deep  yes
        other     LARS       0.3      1e-6          10             1.0          0.2        2 deep  no

    Args:
        taps: Taps of the model.
        hidden: Width of the hidden layers of head and predictor.
        dim: Width of the embedding.
        temperature: Temperature of the cosine similarities.
        momentum: Initial momentum of the teacher; rises to 1 with a cosine schedule.
        base_lr: Learning rate for a batch of 256.
        bias_lr: Learning rate of biases and normalisation layers, which LARS does not scale; null uses the base
            learning rate.
        weight_decay: Weight decay; of all parameters for a ViT, otherwise of tensors with more than one dimension.
        warmup_epochs: Number of epochs of linear warm-up, starting from 0.
        frozen_patches: Freeze a ViT's patch embedding at its random weights, which stabilises training.
        rows_per_block: Number of queries whose similarities are in memory at a time; null keeps all.
        image_size: Side length of the views in pixels, or height x width, such as 64x128.
        min_scale: Minimum fraction of the image area that a view covers.
        blur_px: Maximum standard deviation of the blur in pixels of the view; 2 is meant for views of 224 px, 0
            disables blur.
    """
    tap = image_tap(taps)
    vit = taps[tap].kind == "vector"
    lr, decay, warmup, crop = (1.5e-4, 0.1, 40.0, 0.08) if vit else (0.3, 1e-6, 10.0, 0.2)
    frozen = ParameterRule(r"^network\..*patch_embed", lr_scale=0.0)
    predictor = PredictorSpec(hidden, bias=False, last_norm="plain" if vit else "none")
    head = VectorHeadSpec(hidden, dim, layers=3 if vit else 2, bias=False, last_norm="plain")
    objective = KeyContrastSpec(given(temperature, 0.2 if vit else 1.0), predictor, rows_per_block)
    return Recipe(
        name="moco-v3",
        encoder_init=EncoderInit(zero_gamma=True),
        terms=(Term("encoder", tap, head, objective),),
        views=pair_views(
            *BYOL_PAIR, "bilinear", image_size=image_size, min_scale=given(min_scale, crop), blur_px=blur_px
        ),
        optimiser=OptimiserSpec(
            "adamw" if vit else "lars",
            base_lr=given(base_lr, lr),
            weight_decay=given(weight_decay, decay),
            warmup_epochs=given(warmup_epochs, warmup),
            decay_one_dimensional=vit,
            rules=(*([frozen] if vit and frozen_patches else []), *one_dimensional_rate(bias_lr, given(base_lr, lr))),
        ),
        teacher_momentum=Cosine(momentum, 1.0),
        export="student",
        epochs=300,
        batch_size=4096,
    )


@with_options_of(pair_views)
def byol(
    taps: Mapping[str, Tap],
    *,
    hidden: int = 4096,
    dim: int = 256,
    convention: Literal["squared_distance", "negative_cosine"] = "squared_distance",
    momentum: float = 0.996,
    base_lr: float = 0.2,
    bias_lr: float | None = None,
    weight_decay: float = 1.5e-6,
    warmup_epochs: float = 10.0,
    **views: Any,
) -> Recipe:
    """Return BYOL (arXiv 2006.07733) for 1000 epochs.

    For 300 epochs the paper uses base_lr 0.3 and momentum 0.99. For 100 epochs it uses base_lr 0.45, weight_decay 1e-6
    and momentum 0.99.

    Args:
        taps: Taps of the model.
        hidden: Width of the hidden layer of head and predictor.
        dim: Width of the embedding.
        convention: Form of the loss; see `dovetail.objectives.regress`.
        momentum: Initial momentum of the teacher; rises to 1 with a cosine schedule.
        base_lr: Learning rate for a batch of 256 (LARS).
        bias_lr: Learning rate of biases and normalisation layers, which LARS does not scale; null uses the base
            learning rate.
        weight_decay: Weight decay of tensors with more than one dimension.
        warmup_epochs: Number of epochs of linear warm-up, starting from 0.
    """
    objective = RegressSpec(convention=convention, predictor=PredictorSpec(hidden))
    return Recipe(
        name="byol",
        terms=(Term("encoder", image_tap(taps), VectorHeadSpec(hidden, dim), objective),),
        views=pair_views(*BYOL_PAIR, **views),
        optimiser=lars(base_lr, weight_decay, warmup_epochs=warmup_epochs, bias_lr=bias_lr),
        teacher_momentum=Cosine(momentum, 1.0),
        export="student",
        epochs=1000,
        batch_size=4096,
    )


@with_options_of(pair_views, min_scale=0.2)
def simsiam(
    taps: Mapping[str, Tap],
    *,
    hidden: int = 2048,
    dim: int = 2048,
    predictor_hidden: int = 512,
    base_lr: float = 0.05,
    weight_decay: float = 1e-4,
    **views: Any,
) -> Recipe:
    """Return SimSiam (arXiv 2011.10566): no teacher; the predictor's learning rate stays at its peak.

    Args:
        taps: Taps of the model.
        hidden: Width of the head's two hidden layers.
        dim: Width of the embedding.
        predictor_hidden: Width of the predictor's hidden layer, a bottleneck.
        base_lr: Learning rate for a batch of 256 (SGD); decays to 0 with a cosine schedule.
        weight_decay: Weight decay of all parameters.
    """
    head = VectorHeadSpec(hidden, dim, layers=3, bias=False, last_norm="plain")
    predictor = PredictorSpec(predictor_hidden, bias=False, last_bias=True)
    objective = RegressSpec("student", "negative_cosine", predictor)
    return Recipe(
        name="simsiam",
        encoder_init=EncoderInit(zero_gamma=True),
        terms=(Term("encoder", image_tap(taps), head, objective),),
        views=pair_views(MOCO_VIEW, interpolation="bilinear", **views),
        optimiser=OptimiserSpec(
            "sgd",
            base_lr=base_lr,
            weight_decay=weight_decay,
            rules=(ParameterRule(r"^objectives\..*predictor\.", constant_lr=True),),
        ),
        teacher_momentum=None,
        export="student",
        epochs=100,
        batch_size=512,
    )


METHODS = {
    "simclr": simclr,
    "moco-v2": moco_v2,
    "moco-v3": moco_v3,
    "byol": byol,
    "simsiam": simsiam,
    "barlow": barlow,
    "zerocl": zerocl,
    "vicreg": vicreg,
}
