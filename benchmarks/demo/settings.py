"""The demo's settings, chosen on validation mosaics; benchmarks/results/demo.md tells why each is what it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.demo.mosaics import MosaicPlan
from benchmarks.demo.trial import CLASSES, Pretraining
from dovetail.transfer.augment import Augmentation
from dovetail.transfer.segment import SegmentOptions

# Heads of the size of the task, and a teacher that leaves its random start within a few hundred steps.
HEADS: dict[str, Any] = {
    "hidden": 256,
    "dim": 128,
    "prototypes": 32,
    "momentum": 0.95,
    "teacher_temperature": 0.04,
    "base_lr": 24.0,
    "warmup_epochs": 1.0,
    "min_scale": 0.3,
    "blur_px": 0.6,
}
EPOCHS = 8
SLOTCON = Pretraining("slotcon", HEADS, EPOCHS)
DECON = Pretraining("decon-sl", {**HEADS, "levels": "p2", "decoder_grid": 16}, EPOCHS)

FINETUNING = SegmentOptions(
    classes=CLASSES,
    steps=60,
    batch_size=12,
    lr=2e-3,
    warmup_steps=5,
    augmentation=Augmentation(crop_px=(64, 64), flip_p=0.5, flip_vertical_p=0.5),
)


@dataclass(frozen=True)
class DemoSettings:
    """All that the demo does.

    Attributes:
        unlabelled: Mosaics to pre-train on.
        test: Mosaics to measure on.
        labels: Labelled mosaics in a training set, one number for each column of the table.
        seeds: Of fine-tuning; each has a training set of its own.
        slotcon: Pre-training of the encoder.
        decon: Pre-training of encoder and decoder.
        finetuning: Of every arm.
        mosaics: How mosaics are made.
    """

    unlabelled: int = 512
    test: int = 128
    labels: tuple[int, ...] = (8,)
    seeds: tuple[int, ...] = (0, 1, 2)
    slotcon: Pretraining = SLOTCON
    decon: Pretraining = DECON
    finetuning: SegmentOptions = FINETUNING
    mosaics: MosaicPlan = field(default_factory=MosaicPlan)
