"""The demo's settings, chosen on validation mosaics; benchmarks/results/demo.md tells why each is what it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.demo.mosaics import MosaicPlan
from benchmarks.demo.trial import CLASSES, Pretraining
from dovetail.transfer.augment import Augmentation
from dovetail.transfer.segment import SegmentOptions

# Heads of the size of the task, a teacher that leaves its random start within a few hundred steps, and no blur, which
# would wipe out the textures of views as small as these.
HEADS: dict[str, Any] = {
    "hidden": 256,
    "dim": 128,
    "queue": 1024,
    "momentum": 0.9,
    "base_lr": 0.5,
    "min_scale": 0.4,
    "blur_px": 0.0,
}
EPOCHS = 30
BASE = Pretraining("densecl", HEADS, EPOCHS)
DECON = Pretraining("decon-sl-densecl", {**HEADS, "levels": "p2", "decoder_grid": 16}, EPOCHS)

# The rate that suits training from scratch best; `python -m benchmarks.demo.rates` measured it, and all arms at others.
FINETUNING = SegmentOptions(
    classes=CLASSES,
    steps=80,
    batch_size=12,
    lr=4e-3,
    warmup_steps=5,
    augmentation=Augmentation(crop_px=(64, 64), flip_p=0.5, flip_vertical_p=0.5),
)

# Near and far, in shade and in sun: few labelled images cannot show all of it, many unlabelled ones do.
SIGHT: dict[str, Any] = {"scale": (0.6, 1.4), "contrast": (0.6, 1.15), "brightness": 24.0}


@dataclass(frozen=True)
class DemoSettings:
    """All that the demo does.

    Attributes:
        unlabelled: Pieces of the photographs to pre-train on.
        test: Mosaics to measure on.
        labels: Labelled mosaics in a training set, one number for each column of the table.
        seeds: Of fine-tuning; each has a training set of its own.
        base: Pre-training of the encoder alone.
        decon: Pre-training of encoder and decoder.
        finetuning: Of every arm.
        pieces: How the pieces of photographs are made.
        mosaics: How mosaics are made.
    """

    unlabelled: int = 512
    test: int = 128
    labels: tuple[int, ...] = (4, 16)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    base: Pretraining = BASE
    decon: Pretraining = DECON
    finetuning: SegmentOptions = FINETUNING
    pieces: MosaicPlan = field(default_factory=lambda: MosaicPlan(side_px=80, regions=(1, 1), **SIGHT))
    mosaics: MosaicPlan = field(default_factory=lambda: MosaicPlan(**SIGHT))
