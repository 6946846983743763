"""One row of the demo: where its weights come from, and what they are worth frozen and fine-tuned.

Everything goes through the public functions, as a user would call them.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import segmentation_models_pytorch as smp
import torch
from torch import nn

import dovetail
from benchmarks.demo.settings import CLASSES, ENCODER, MODEL, WIDTHS, DemoSettings, Pretraining
from dovetail.downstream.labels.labelled import InMemory, LabelledSet
from dovetail.downstream.labels.readers import paired
from dovetail.downstream.segment.loop import confusion_matrix, finetune_segmentation
from dovetail.downstream.segment.metrics import SegmentationScores
from dovetail.downstream.segment.options import SegmentOptions
from dovetail.networks.build import build_network
from dovetail.networks.initialise import initialise


def new_model(seed: int, classes: int = len(CLASSES)) -> nn.Module:
    """Return the model with an ImageNet encoder and a decoder drawn from `seed`."""
    torch.manual_seed(seed)
    model: nn.Module = smp.FPN(encoder_name=ENCODER, encoder_weights=None, classes=classes, **WIDTHS)
    initialise(build_network(model), "imagenet")
    return model


def pretrained(how: Pretraining, images: Path, out: Path) -> Path:
    """Pre-train on a folder of images and return the run's folder; a finished one with these options is kept."""
    told, noted = json.dumps(how.arguments(), sort_keys=True), out.with_name(f"{out.name}.json")
    known = noted.is_file() and noted.read_text(encoding="utf-8") == told
    if not (known and (out / "exported" / "model.safetensors").is_file()):
        noted.unlink(missing_ok=True)
        dovetail.pretrain(data=images, out=out, workers=1, overwrite=out.exists(), **how.arguments())
        noted.write_text(told, encoding="utf-8")
    return out


@dataclass(frozen=True)
class Row:
    """What a row starts from: ImageNet weights, or a run and what is taken along of it."""

    name: str
    run: Path | None = None
    part: Literal["all", "encoder"] = "all"

    def model(self, seed: int) -> nn.Module:
        """Return the model that is fine-tuned; what is not loaded is drawn from `seed`, the same in every row."""
        model = new_model(seed)
        if self.run is not None:
            dovetail.load_into(model, self.run, part=self.part)
        return model

    def source(self) -> dict[str, Any]:
        """Return where `dovetail.evaluate_dense` finds the weights."""
        return {"model": MODEL, "init": "imagenet"} if self.run is None else {"run": self.run}


@dataclass(frozen=True)
class Outcome:
    """A row's scores in per cent: frozen maps by tap and number of labels, fine-tuning by seed."""

    row: Row
    frozen: dict[tuple[str, int], tuple[float, ...]]
    finetuned: tuple[SegmentationScores, ...]
    model: nn.Module

    @property
    def mious(self) -> list[float]:
        """mIoU of each seed after fine-tuning."""
        return [100 * score.miou for score in self.finetuned]


def mean_text(values: Sequence[float]) -> str:
    """Return a mean and its standard deviation over seeds."""
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{spread}"


def labelled(scenes: Path, split: str) -> InMemory:
    """Return a split's images and masks, read once."""
    folders = scenes / "images" / split, scenes / "masks" / split
    return InMemory.of(paired(*folders, classes=len(CLASSES)))


def frozen(row: Row, out: Path, settings: DemoSettings) -> dict[tuple[str, int], tuple[float, ...]]:
    """Return mIoU in per cent of a linear classifier on frozen maps, by tap and number of labels, for each draw."""
    results = dovetail.evaluate_dense(
        **row.source(),
        data=settings.scenes / "measure",
        out=out,
        at=["encoder", "decoder"],
        protocols=["linear"],
        labels=[float(count) for count in settings.labels],
        seeds=settings.probe_seeds,
        steps=settings.probe_steps,
        lr=list(settings.probe_rates),
        image_size=160,
    )
    assert results is not None  # this was no check
    return {
        (line.setting["at"], int(line.setting["labels"])): tuple(100 * value for value in line.scores["mIoU"].values)
        for line in results.rows
    }


def finetuned(
    row: Row, train: LabelledSet, test: LabelledSet, options: SegmentOptions, seeds: Sequence[int]
) -> tuple[tuple[SegmentationScores, ...], nn.Module]:
    """Return the scores of fine-tuning with each seed, and the model of the first."""
    scores, models = [], []
    for seed in seeds:
        model = row.model(seed)
        finetune_segmentation(model, train, replace(options, seed=seed))
        scores.append(confusion_matrix(model, test, options).scores())
        models.append(model)
    return tuple(scores), models[0]
