"""DetCon (arXiv 2103.10957, ICCV 2021): contrast segments of images, from masks or from a classical segmentation.

This is DetCon-B, the form with a teacher and a predictor. Defaults follow the official code. Each run needs masks
(`dovetail.data.masks`). Differences from the official code: see `docs/methods/detcon.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dovetail.heads.segments import SegmentHeadSpec
from dovetail.networks.network import deepest_encoder_tap
from dovetail.objectives.segments import SegmentContrastSpec
from dovetail.objectives.vector import PredictorSpec
from dovetail.recipe import Cells, Recipe, Tap, Term
from dovetail.recipes.image_parts import BYOL_PAIR, lars, pair_views
from dovetail.recipes.shared import with_options_of
from dovetail.schedules import Cosine
from dovetail.views.plan import SegmentSpec


@with_options_of(pair_views)
def detcon(
    taps: Mapping[str, Tap],
    *,
    hidden: int = 4096,
    dim: int = 256,
    temperature: float = 0.1,
    segments: int = 16,
    segment_scale: float = 1000.0,
    segment_min_px: int = 1000,
    segment_side_px: int = 512,
    momentum: float = 0.996,
    base_lr: float = 0.2,
    bias_lr: float | None = None,
    weight_decay: float = 1.5e-6,
    warmup_epochs: float = 3.0,
    rows_per_block: int | None = 1024,
    **views: Any,
) -> Recipe:
    """Return DetCon-B on the encoder's deepest map, with the settings of the official code for 300 epochs.

    The student's encoder is exported, as by the official code.

    Args:
        taps: Taps of the model.
        hidden: Width of the hidden layer of head and predictor.
        dim: Width of the embedding.
        temperature: Temperature of the cosine similarities.
        segments: Number of segments to sample in each view, with replacement.
        segment_scale: For masks felzenszwalb: preference for large segments.
        segment_min_px: For masks felzenszwalb: minimum number of pixels of a segment.
        segment_side_px: For masks felzenszwalb: length to which the longer side of an image is reduced before it is
            segmented.
        momentum: Initial momentum of the teacher; rises to 1 with a cosine schedule.
        base_lr: Learning rate for a batch of 256 (LARS).
        bias_lr: Learning rate of biases and normalisation layers, which LARS does not scale; null uses the base
            learning rate.
        weight_decay: Weight decay of tensors with more than one dimension.
        warmup_epochs: Number of epochs of linear warm-up, starting from 0.
        rows_per_block: Number of segments whose similarities are in memory at a time; null keeps all.
    """
    head = SegmentHeadSpec(hidden, dim)
    objective = SegmentContrastSpec(temperature, PredictorSpec(hidden, last_bias=False), rows_per_block)
    spec = SegmentSpec(segments, segment_scale, segment_min_px, segment_side_px)
    return Recipe(
        name="detcon",
        terms=(Term("encoder", deepest_encoder_tap(taps), head, objective, cells=Cells(segments=segments)),),
        views=replace(pair_views(*BYOL_PAIR, **views), segments=spec),
        optimiser=lars(base_lr, weight_decay, warmup_epochs=warmup_epochs, bias_lr=bias_lr),
        teacher_momentum=Cosine(momentum, 1.0),
        export="student",
        epochs=300,
        batch_size=4096,
    )


METHODS = {"detcon": detcon}
