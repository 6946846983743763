"""Presets: sizes of heads, momenta and learning rates for runs much smaller or shorter than those of the papers.

A preset is a set of options. Options that a method does not have are ignored, and options of the user override it.

"small" is for few images or a CPU and only changes sizes. "short" is for a few hundred steps on views of about 64 px.
With the published settings such a run changes the network little: a teacher that moves by a thousandth per step is
still close to its random weights, and a blur of 2 px destroys most of such a view. `docs/results-64px.md` was measured
with "short".

"continue" is "short" for an encoder that starts from trained weights. The encoder is frozen for the first half of the
run, and trained at a tenth of the learning rate in the second half; its BatchNorm layers keep their statistics
(`docs/results.md`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from dovetail.recipe import Tap
from dovetail.recipes.image_parts import image_tap
from dovetail.recipes.registry import BUILT_IN
from dovetail.recipes.table import options_of, parse

Preset = Literal["paper", "small", "short", "continue"]

SMALL_IMAGES = 20_000

# The published values are meant for images of about 500 px, on which they are slow to compute.
_SEGMENTS: Mapping[str, Any] = {"segment_side_px": 256, "segment_scale": 250.0, "segment_min_px": 250}
# The published widths are meant for a hundred thousand images and eight GPUs. With a few thousand images on a CPU, the
# heads would take most of the time, and most prototypes would win no cell.
SMALL: dict[str, Any] = {
    "hidden": 1024,
    "dim": 128,
    "prototypes": 64,
    "decoder_cells": 196,
    "decoder_hidden": 512,  # decoder maps have fewer channels than the deepest encoder map
    "queue": 4096,
    "warmup_epochs": 2.0,
    "predictor_hidden": 32,  # a quarter of `dim`, as published
    **_SEGMENTS,
}

_HEADS: Mapping[str, Any] = {"hidden": 256, "dim": 128, "momentum": 0.9, "min_scale": 0.4, "blur_px": 0.0}
# LARS does not scale the learning rate of one-dimensional tensors, so at this rate they need their own.
_LARS: Mapping[str, Any] = {**_HEADS, "base_lr": 24.0, "bias_lr": 0.24, "warmup_epochs": 1.0}
_SGD: Mapping[str, Any] = {**_HEADS, "queue": 1024, "base_lr": 0.5}
# Crops overlap only sometimes. The teacher is sharper and the centre faster than in long runs; otherwise the teacher's
# distributions stay uniform.
_TOKENS: Mapping[str, Any] = {
    "hidden": 64,
    "bottleneck": 32,
    "prototypes": 128,
    "head_norm": True,
    "teacher_temperature": 0.01,
    "warmup_temperature": 0.01,
    "centre_momentum": 0.6,
    "momentum": 0.95,
    "base_lr": 4e-3,
    "warmup_epochs": 1.0,
    "final_weight_decay": 0.04,
    "frozen_epochs": 0,
    "global_scale": (0.15, 0.5),
    "local_crops": 0,
    "blur_px": 0.0,
}
_PATCHES: Mapping[str, Any] = {**_TOKENS, "teacher_patch_temperature": 0.01, "patch_centre_momentum": 0.6}
_QUERIES: Mapping[str, Any] = {"query_centre_momentum": 0.6}
SHORT: Mapping[str, Mapping[str, Any]] = {
    **dict.fromkeys(BUILT_IN, _LARS),
    "slotcon": {**_LARS, "prototypes": 32, "teacher_temperature": 0.04, "momentum": 0.95, "blur_px": 0.6},
    "densecl": _SGD,
    "detcon": {**_LARS, **_SEGMENTS},
    "moco-v2": {**_SGD, "temperature": 0.1},
    "encoder-targets": {},  # its rates are for short runs
    "simsiam": {**_SGD, "predictor_hidden": 32},
    "zerocl": {**_LARS, "dim": 16},  # fewer channels than images in a batch
    "dino": _TOKENS,
    "ibot": _PATCHES,
    "selfpatch": {**_TOKENS, "patch_prototypes": 128},
    "pqcl": {**_PATCHES, **_QUERIES, "teacher_query_temperature": 0.01, "query_size": 32, "query_blur_px": 0.0},
}
"""The preset "short" of each base method of this package. External methods keep their learning rates (`_HEADS`)."""

ADAMW_RATES: Mapping[str, Any] = {"base_lr": _TOKENS["base_lr"], "bias_lr": None}
"""Learning rates for a ViT, instead of those of LARS."""

SHORT_RATES: Mapping[str, Mapping[str, Any]] = {
    "adamw": ADAMW_RATES,
    "lamb": ADAMW_RATES,
    "lars": {name: _LARS[name] for name in ("base_lr", "bias_lr")},
    "sgd": {"base_lr": _SGD["base_lr"], "bias_lr": None},
}
"""Learning rates of "short" for each optimiser that a user may choose."""

SHORT_ADCLR: Mapping[str, Any] = _QUERIES
SHORT_DECON: Mapping[str, Any] = {"decoder_cells": 196, "instance_weight": 1.0}
SHORT_JOINT: Mapping[str, Any] = {
    "decoder_hidden": 64,
    "decoder_dim": 32,
    "decoder_queue": 512,
}
"""Options that "short" adds for query patches, for a decoder, and for a decoder with its own method."""


CONTINUE: Mapping[str, Any] = {"encoder_lr_scale": 0.1}
"""Options of "continue" that override those of "short" for every method."""

FROZEN_SHARE = 0.5
"""Fraction of a run for which "continue" freezes the encoder, with a decoder."""


def choose(preset: Preset | Literal["auto"], *, num_images: int, accelerator: str) -> Preset:
    """Return the preset; "auto" is "small" for up to 20,000 images or on a CPU, otherwise "paper"."""
    if preset != "auto":
        return preset
    return "small" if num_images <= SMALL_IMAGES or accelerator == "cpu" else "paper"


def options(
    preset: Preset, method: str, taps: Mapping[str, Tap] | None = None, *, optimiser: str = "published"
) -> dict[str, Any]:
    """Return the preset's options for a method, an optimiser and a model with these taps (a CNN by default)."""
    if preset == "paper":
        return {}
    known = options_of(method)
    found = SMALL if preset == "small" else short_options(method, taps)
    if preset == "continue":
        found = {**found, **CONTINUE}
    if "base_lr" in found and optimiser != "published":
        found = {**found, **SHORT_RATES.get(optimiser, {})}
    return {name: value for name, value in found.items() if name in known}


def beside(found: Mapping[str, Any], given: Collection[str], method: str) -> dict[str, Any]:
    """Return a preset's options for a method without those that the user's options, `given`, replace.

    `decoder_grid` also replaces `decoder_cells`. `hidden` also replaces `decoder_hidden`, unless the decoder has its
    own method.
    """
    parts, replaced = parse(method), set(given)
    if "decoder_grid" in given:
        replaced.add("decoder_cells")
    if "hidden" in given and parts.decoder in (None, parts.base):
        replaced.add("decoder_hidden")
    return {name: value for name, value in found.items() if name not in replaced}


def agreed_options(preset: Preset, method: str) -> dict[str, Any]:
    """Return the preset's options that do not depend on model and run length: all except learning rates and epochs."""
    suited = ("warmup_epochs", "frozen_epochs", "base_lr", "bias_lr")
    return {name: value for name, value in options(preset, method).items() if name not in suited}


def short_options(method: str, taps: Mapping[str, Tap] | None = None) -> dict[str, Any]:
    """Return the options of "short" for a method, including options that the method lacks."""
    parts = parse(method)
    found = dict(SHORT.get(parts.base, _HEADS))
    if parts.base == "moco-v3" and taps and taps[image_tap(taps)].kind == "vector":
        found |= ADAMW_RATES  # MoCo v3 trains CNNs with LARS and ViTs with AdamW
    if parts.adclr:
        found |= SHORT_ADCLR
    if parts.decon:
        leading = SHORT.get(parts.decoder or parts.base, _HEADS)
        found |= SHORT_DECON
        if parts.decoder not in (None, parts.base):
            found |= {**SHORT_JOINT, "decoder_predictor_hidden": 8}
        found |= {"decoder_momentum": leading["momentum"]} if "momentum" in leading else {}
    return found
