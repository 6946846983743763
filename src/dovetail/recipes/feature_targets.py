"""Encoder targets: each cell of the decoder predicts a trained encoder's features of the same place in another view.

This method was developed in this project for a new decoder on a trained encoder. The student's finest decoder map of
one crop predicts, through a 1x1 convolution, the encoder's features of another crop of the same image at the same
positions. The crops differ in position, scale, colours and mirroring, so the decoder must recognise the content and
cannot copy.

Use it with an encoder that starts from trained weights and is frozen (`freeze_encoder_epochs="all"`). The teacher's
encoder then equals the initial encoder. If the encoder is trained, its targets move.

The learning rate is the one that we measured: 1e-3 for AdamW with a batch of 16, which is 1.6e-2 for 256. It is higher
than that of methods that train the whole network, because a decoder has few weights and trains from random weights for
a few hundred steps. Linear scaling was not tried beyond a batch of 32, so this is the largest default batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dovetail.errors import ModelError, OptionsError
from dovetail.heads.raw import RawHeadSpec
from dovetail.networks.network import finest_decoder_tap
from dovetail.objectives.prediction import FeaturePredictionSpec
from dovetail.recipe import OptimiserSpec, Recipe, Tap, Target, Term
from dovetail.recipes.image_parts import blurred
from dovetail.schedules import Cosine
from dovetail.sizes import Size
from dovetail.views.plan import Photometric, ViewPlan, ViewSpec

TARGET_STRIDE = 16
UNCHANGED = Photometric(jitter_p=0.0, grey_p=0.0, blur_p=0.0)


def encoder_targets(
    taps: Mapping[str, Tap],
    *,
    level: str | None = None,
    crops: int = 1,
    target_scale: tuple[float, float] = (0.3, 1.0),
    scale: tuple[float, float] = (0.5, 1.0),
    predictor_width: int = 0,
    momentum: float = 0.99,
    base_lr: float = 1.6e-2,
    weight_decay: float = 0.01,
    warmup_epochs: float = 0.5,
    image_size: Size = 224,
    blur_px: float = 0.0,
) -> Recipe:
    """Return the prediction of the encoder's features from the decoder's finest map; the student is exported.

    Args:
        taps: Taps of the model.
        level: Encoder feature map to predict, such as c4; null uses the deepest map with a stride of at most 16 or, if
            there is none, the finest map.
        crops: Number of crops per image whose features are predicted, at least 1.
        target_scale: Range of the fraction of the image area that each predicted crop (see `crops`) covers.
        scale: Range of the fraction of the image area that the crop for the decoder covers.
        predictor_width: Width of the predictor's hidden layer; 0 uses a predictor with one layer.
        momentum: Initial momentum of the teacher; rises to 1 with a cosine schedule. A frozen encoder does not move.
        base_lr: Learning rate for a batch of 256 images (AdamW), so 1e-3 for 16; decays to 0 with a cosine schedule.
        weight_decay: Weight decay of all parameters.
        warmup_epochs: Number of epochs of linear warm-up, starting from 0.
        image_size: Side length of the views in pixels, or height x width, such as 64x128.
        blur_px: Maximum standard deviation of the blur in pixels of the decoder's view; 0 disables blur.

    Raises:
        DovetailError: If the model has no decoder or no such level, or a value is out of range.
    """
    finest = finest_decoder_tap(taps)
    tap = target_tap(taps, level)
    if crops < 1:
        raise OptionsError(f"crops is {crops}; it must be at least 1.")
    for name, share in (("scale", scale), ("target_scale", target_scale)):
        if not 0 < share[0] <= share[1] <= 1:
            raise OptionsError(f"{name} is {share[0]:g} to {share[1]:g}; use two fractions above 0, the smaller first.")
    photometric = blurred(Photometric(saturation=0.6, grey_p=0.0), blur_px)
    seen = ViewSpec(image_size, scale, photometric=photometric)
    predicted = ViewSpec(image_size, target_scale, flip_p=0.0, photometric=UNCHANGED, role="local")
    objective = FeaturePredictionSpec(taps[finest].channels, taps[tap].channels, predictor_width)
    return Recipe(
        name="encoder-targets",
        terms=(Term(f"decoder_{finest}", finest, RawHeadSpec(), objective, target=Target(tap)),),
        views=ViewPlan((seen, *[predicted] * crops), min_overlap=0.5),
        optimiser=OptimiserSpec("adamw", base_lr=base_lr, weight_decay=weight_decay, warmup_epochs=warmup_epochs),
        teacher_momentum=Cosine(momentum, 1.0),
        teacher_views=("local",),
        teacher_buffers="copied",  # the teacher's decoder never runs, so it cannot collect statistics
        export="student",
        epochs=10,
        batch_size=32,
    )


def target_tap(taps: Mapping[str, Tap], level: str | None) -> str:
    """Return the encoder's map or patches to predict: `level`, or the deepest of stride 16 at most, or the finest.

    Raises:
        DovetailError: If the encoder has no such level.
    """
    strides = {
        name: tap.stride for name, tap in taps.items() if tap.part == "encoder" and tap.kind in RawHeadSpec().kinds
    }
    strides.pop("queries", None)
    if level is not None and level not in strides:
        raise OptionsError(f"The encoder has no level {level!r}; it has {', '.join(strides)}.")
    if not strides:
        raise ModelError(f"The encoder has no maps to predict, only {', '.join(taps)}; choose another model.")
    if level is not None:
        return level
    fine = [name for name, stride in strides.items() if stride <= TARGET_STRIDE]
    return max(fine, key=strides.__getitem__) if fine else min(strides, key=strides.__getitem__)


METHODS: dict[str, Callable[..., Recipe]] = {"encoder-targets": encoder_targets}
