"""What is compared: the arms, their recipes for short runs, and the sizes of each budget. Plain data.

An arm is a way to start. Every method is pre-trained once for each seed on unlabelled scenes and fine-tuned from what
`starts` names with the same seed's labelled scenes, so that arms differ, seed by seed, in the start alone. The learning
rate of fine-tuning is chosen for each start by itself, from the same candidates, on scenes that no table shows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from benchmarks.scenes.sets import COUNTS, SetPlan
from benchmarks.scenes.stock import Split
from dovetail.recipes import presets
from dovetail.recipes.table import options_of
from dovetail.transfer.start import Start

STUDY = 2
"""Counted up with every change of how numbers come about that the settings do not show."""

HOME = "home"
"""The budget's own set, wherever an arm names no other."""

OBJECTS = "objects"
"""The budget's set of objects with boxes and masks."""

Measure = Literal["segmentation", "detection", "frozen"]
RANDOM: Start = "random"
ENCODER: Start = "encoder"
ALL: Start = "all"


@dataclass(frozen=True)
class Arm:
    """A way to start.

    Attributes:
        name: Of the rows.
        method: Of pre-training; None for none.
        base: Whose settings the recipe takes; None for no pre-training.
        starts: What fine-tuning takes of the run.
        encoder_lr_scale: Of fine-tuning; 0 keeps the encoder as it starts.
        trivial: Whether it is a floor rather than a contender.
        cue: Of a floor without a network: "background", or one of `benchmarks.scenes.baselines`.
        options: Of the recipe, over those of the base.
        measured_on: The set that is fine-tuned and tested on; `HOME` for the budget's own, or `OBJECTS`.
        trained_on: The set whose images are pre-trained on, without their labels; `HOME` likewise.
        measure: "segmentation" or "detection" (of boxes and masks) after fine-tuning, or "frozen": kNN and a linear
            classifier on the encoder as it is.
        network: "vit" for the budget's ViT, "detector" for an encoder with a detector's pyramid, "unet" for fine-tuning
            another decoder than the one pre-trained, "whole unet" for pre-training that one too.
        longer: Factor on the epochs of pre-training.
        finetuning: Options of fine-tuning, over the budget's.
        rates: Candidates for the learning rate of fine-tuning; the budget's unless given.
    """

    name: str
    method: str | None
    base: str | None
    starts: tuple[Start, ...]
    encoder_lr_scale: float = 1.0
    trivial: bool = False
    cue: str | None = None
    options: Mapping[str, Any] | None = None
    measured_on: str = HOME
    trained_on: str = HOME
    measure: Measure = "segmentation"
    network: Literal["vit", "detector", "unet", "whole unet"] | None = None
    longer: float = 1.0
    finetuning: Mapping[str, Any] | None = None
    rates: tuple[float, ...] = ()


_LONGER: Mapping[str, Any] = {"min_scale": 0.2}
_LONGER_TOKENS: Mapping[str, Any] = {"prototypes": 8192, "local_crops": 6, "local_size": 64}
LONG_RECIPES: Mapping[str, Mapping[str, Any]] = {
    "slotcon": {**_LONGER, "hidden": 2048, "prototypes": 128},
    "densecl": {**_LONGER, "queue": 16384},
    "pixpro": _LONGER,
    "dino": _LONGER_TOKENS,
    "ibot": _LONGER_TOKENS,
}


@dataclass(frozen=True)
class Budget:
    """How large everything is.

    Attributes:
        name: Of the tables.
        model: Name of the network.
        side_px: Of the scenes.
        view_px: Of the views in pre-training.
        counts: Scenes of each split.
        epochs: Of pre-training.
        batch_size: Of pre-training.
        recipes: Options of each base's recipe.
        decoder_grid: DeCon's, added to them.
        decon: More of DeCon's, of those that a method has.
        joint: More of those whose decoder has a method of its own.
        adclr: ADCLR's, added likewise.
        steps: Of fine-tuning, whatever the number of labels.
        finetune_batch: Of fine-tuning.
        rates: Candidates for the learning rate of fine-tuning.
        rate_fraction: Share of the labels with which it is chosen.
        fractions: Shares of the labels in the tables.
        seeds: Each draws a pre-training and a subset of the labels.
        close: Whether the scenes' objects are few and large.
        home: The set that is pre-trained on and segmented where an arm names no other.
        vit: Name of the ViT.
        vit_rates: Candidates for its learning rate.
        unet: Name of the network with another decoder than `model`'s.
        objects: The set whose objects are detected.
        detector: Name of the encoder and pyramid of detectors.
        detection: Options of fine-tuning a detector.
        detection_rates: Candidates for its learning rate.
    """

    name: str
    model: str
    side_px: int
    view_px: int
    epochs: int
    batch_size: int
    recipes: Mapping[str, Mapping[str, Any]]
    decoder_grid: int
    steps: int
    finetune_batch: int
    counts: Mapping[Split, int] = field(default_factory=lambda: dict(COUNTS))
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3)
    rate_fraction: float = 0.1
    fractions: tuple[float, ...] = (0.01, 0.05, 0.1, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    close: bool = False
    decon: Mapping[str, Any] = field(default_factory=dict)
    joint: Mapping[str, Any] = field(default_factory=dict)
    adclr: Mapping[str, Any] = field(default_factory=dict)
    home: str = "stamps"
    vit: str = "timm/vit_tiny_patch16_224+fpn"
    vit_rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3)
    unet: str = "smp/unet/tu-resnet10t"
    objects: str = "stamps"
    detector: str = "timm/resnet10t+fpn(channels=16)"
    detection: Mapping[str, Any] = field(default_factory=dict)
    detection_rates: tuple[float, ...] = (1e-2, 2e-2)

    @property
    def scenes(self) -> SetPlan:
        """How every set's scenes are made."""
        return SetPlan(self.side_px, self.counts, close=self.close)

    def recipe(self, arm: Arm) -> dict[str, Any]:
        """Return the options of an arm's recipe."""
        if arm.method is None:
            return {}
        options = dict(self.recipes[arm.base]) if arm.base is not None else {}
        if arm.method.startswith("adclr"):
            options |= self.adclr
        if "decon-" in arm.method:
            options |= {**self.decon, "decoder_grid": self.decoder_grid, "decoder_cells": 0}
            options |= self.joint if "+" in arm.method else {}
        known = options_of(arm.method)
        return {name: value for name, value in options.items() if name in known} | dict(arm.options or {})

    def pretrained_model(self, arm: Arm) -> str:
        """Return the name of the network that an arm pre-trains."""
        others = {"vit": self.vit, "detector": self.detector, "whole unet": self.unet}
        return others.get(arm.network or "", self.model)

    def finetuned_model(self, arm: Arm) -> str:
        """Return the name of the network that an arm fine-tunes."""
        return self.unet if arm.network == "unet" else self.pretrained_model(arm)

    def set_of(self, name: str) -> str:
        """Return the name of a set that an arm names, which may be `HOME` or `OBJECTS`."""
        return {HOME: self.home, OBJECTS: self.objects}.get(name, name)

    def rates_of(self, arm: Arm) -> tuple[float, ...]:
        """Return the candidates for the learning rate with which an arm is fine-tuned."""
        if arm.rates:
            return arm.rates
        if arm.measure == "detection":
            return self.detection_rates
        return self.vit_rates if arm.network == "vit" else self.rates


TINY_RECIPES = {
    base: {
        name: min(value, 32) if name in ("hidden", "dim", "bottleneck") else value for name, value in options.items()
    }
    for base, options in presets.SHORT.items()
}
TINY = "tiny"
"""The budget that shows that everything fits together; its numbers mean nothing and go into the cache."""

# 0.6 million parameters with the FPN, so that minutes are enough to train it.
_SMALL = "encoder_name='tu-resnet10t', stem_width=16, channels=(32, 64, 96, 128)"
BUDGETS: Mapping[str, Budget] = {
    "cpu": Budget(
        name="cpu",
        model=f"smp.FPN({_SMALL}, decoder_pyramid_channels=64, decoder_segmentation_channels=32, decoder_dropout=0.0)",
        side_px=64,
        view_px=64,
        epochs=15,
        batch_size=32,
        recipes=presets.SHORT,
        decoder_grid=8,
        steps=200,
        finetune_batch=12,
        counts={"unlabelled": 1024, "train": 400, "val": 100, "test": 200},
        rates=(2e-3, 4e-3),
        close=True,
        decon=presets.SHORT_DECON,
        joint=presets.SHORT_JOINT,
        adclr=presets.SHORT_ADCLR,
        home="mosaics",
        vit="timm.create_model('test_vit', patch_size=8, depth=4, weight_init='jax')+fpn(channels=32)",
        unet=f"smp.Unet({_SMALL}, decoder_channels=(64, 48, 32, 24, 16))",
        objects="scraps",
        detector="timm.create_model('resnet10t', stem_width=16, channels=(32, 64, 96, 128))+fpn(channels=64)",
        detection={"steps": 200, "batch_size": 4, "image_size": 96, "head_width": 0.25, "proposals": 32},
        detection_rates=(2e-2, 5e-2),
    ),
    "gpu": Budget(
        name="gpu",
        model="smp/fpn/tu-resnet50",
        side_px=224,
        view_px=160,
        epochs=100,
        batch_size=256,
        recipes=LONG_RECIPES,
        decoder_grid=40,
        steps=1000,
        finetune_batch=32,
        counts={"unlabelled": 8000, "train": 1000, "val": 200, "test": 600},
        vit="timm/vit_small_patch16_224+fpn",
        unet="smp/unet/tu-resnet50",
        detector="timm/resnet50+fpn",
        detection={"steps": 2000, "batch_size": 16, "image_size": 224},
    ),
    TINY: Budget(
        name=TINY,
        model="smp/fpn/tu-resnet10t",
        side_px=64,
        view_px=64,
        epochs=1,
        batch_size=8,
        recipes=TINY_RECIPES,
        decoder_grid=16,
        steps=2,
        finetune_batch=4,
        counts={"unlabelled": 16, "train": 8, "val": 4, "test": 8},
        rates=(1e-3, 2e-3),
        rate_fraction=0.5,
        fractions=(0.5, 1.0),
        seeds=(0, 1),
        vit_rates=(1e-3, 2e-3),
        detection={"steps": 2, "batch_size": 2, "image_size": 64, "head_width": 0.0625, "proposals": 8},
        decon=presets.SHORT_DECON,
        joint=presets.SHORT_JOINT,
        adclr=presets.SHORT_ADCLR,
    ),
}
