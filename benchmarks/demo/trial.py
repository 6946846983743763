"""One arm of the comparison: pre-train on the unlabelled mosaics, fine-tune with few labels, measure.

Everything goes through the public functions, as a user would call them.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import segmentation_models_pytorch as smp
import torch
from torch import nn

import dovetail
from benchmarks.demo.mosaics import TEXTURES
from dovetail.transfer.labelled import InMemory, LabelledSet, MaskFolder, Subset
from dovetail.transfer.metrics import SegmentationScores
from dovetail.transfer.segment import SegmentOptions, evaluate_segmentation, finetune_segmentation

MODEL = "a small Unet on a ResNet-10-T"
CLASSES = len(TEXTURES)


def small_unet(seed: int) -> nn.Module:
    """Return the model, its weights drawn from `seed`: 0.8 million parameters, so that minutes are enough."""
    torch.manual_seed(seed)
    model: nn.Module = smp.Unet(
        "tu-resnet10t",
        encoder_weights=None,
        classes=CLASSES,
        decoder_channels=(64, 48, 32, 24, 16),
        stem_width=16,
        channels=(32, 64, 96, 128),
    )
    return model


@dataclass(frozen=True)
class Pretraining:
    """How an arm is pre-trained: a method, options of its recipe, and how long."""

    method: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    epochs: int = 14
    batch_size: int = 32
    image_size: int = 64
    seed: int = 0

    def run(self, images: Path, out: Path) -> Path:
        """Pre-train on a folder of images and return the run's folder; a finished one is taken as it is."""
        if not (out / "exported" / "model.safetensors").is_file():
            dovetail.pretrain(
                data=images,
                model=small_unet(self.seed),
                method=self.method,
                out=out,
                recipe=dict(self.recipe),
                epochs=self.epochs,
                batch_size=self.batch_size,
                image_size=self.image_size,
                seed=self.seed,
                workers=0,
                overwrite=out.exists(),
            )
        return out


@dataclass(frozen=True)
class Arm:
    """What fine-tuning starts from: nothing, or one part or all of a pre-trained model."""

    name: str
    run: Path | None = None
    part: Literal["all", "encoder", "decoder"] = "all"

    def model(self, seed: int) -> nn.Module:
        """Return the model that is fine-tuned; what is not loaded is drawn from `seed`, the same in every arm."""
        model = small_unet(seed)
        if self.run is not None:
            dovetail.load_into(model, self.run, part=self.part)
        return model


@dataclass(frozen=True)
class Outcome:
    """An arm's scores, one for each seed, and the model of the first."""

    arm: Arm
    scores: tuple[SegmentationScores, ...]
    model: nn.Module

    @property
    def mious(self) -> list[float]:
        """mIoU of each seed, in per cent."""
        return [100 * score.miou for score in self.scores]

    @property
    def mean(self) -> float:
        """Mean mIoU over seeds, in per cent."""
        return statistics.fmean(self.mious)

    @property
    def deviation(self) -> float:
        """Standard deviation of mIoU over seeds (n - 1), in per cent."""
        return statistics.stdev(self.mious) if len(self.mious) > 1 else 0.0


def read_split(folder: Path) -> InMemory:
    """Return a split's images and masks, read once."""
    return InMemory.of(MaskFolder.open(folder / "images", folder / "masks", classes=CLASSES))


def measure(
    arm: Arm,
    labelled: LabelledSet,
    held_out: LabelledSet,
    *,
    labels: int,
    options: SegmentOptions,
    seeds: Sequence[int],
) -> Outcome:
    """Fine-tune an arm once for each seed, on other `labels` mosaics each time, and score it on `held_out`.

    Seed s learns from the mosaics s * labels .. (s + 1) * labels - 1, the same in every arm.
    """
    scores, first = [], None
    for seed in seeds:
        model = arm.model(seed)
        few = Subset(labelled, tuple(range(seed * labels, (seed + 1) * labels)))
        finetune_segmentation(model, few, replace(options, seed=seed))
        scores.append(evaluate_segmentation(model, held_out, options))
        first = first or model
    assert first is not None  # there is at least one seed
    return Outcome(arm, tuple(scores), first)
