"""The job behind `dovetail finetune classify`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from dovetail.downstream.classify.loop import Classifier, ClassifyOptions, finetune_classification
from dovetail.downstream.examples import SIDE_PX, Example, side_by_side
from dovetail.downstream.finished import Task
from dovetail.downstream.fit import OnStep
from dovetail.downstream.job import FinetunePlan, evenly, run_plan
from dovetail.downstream.labels.class_sets import ClassSet
from dovetail.downstream.machine import Machine
from dovetail.downstream.options import FinetuneClassifyOptions
from dovetail.downstream.probe.features import Features, of_central_crops
from dovetail.downstream.probe.job import Prepared, accuracies, prepared
from dovetail.downstream.segment.colours import picture_of
from dovetail.downstream.start import Source, Start, chosen_starts
from dovetail.downstream.table.ledger import Fitted
from dovetail.downstream.table.results import Results
from dovetail.downstream.table.trials import Trial
from dovetail.errors import OptionsError
from dovetail.sizes import size_in_words

MIN_STEPS = 100


def build_classifier(source: Source, classes: int) -> Classifier:
    """Return a classifier with random weights. Pre-trained weights are loaded into `features.network.model`.

    A linear layer classifies the mean over the deepest feature map, or a ViT's class token after the final norm. Parts
    of the network that are not used (a decoder) are frozen.
    """
    network = source.network("random")
    network.requires_grad_(True)
    features = Features(network)
    tap = "cls" if "cls" in network.taps else "pooled" if "pooled" in network.taps else features.tap
    network.prune([tap])
    return Classifier(features, classes)


@dataclass(frozen=True)
class Plan(FinetunePlan):
    """A fine-tuning for classification. `options` are those for the whole training set."""

    source: Source
    where: Machine
    ready: Prepared
    options: ClassifyOptions
    fixed_steps: bool

    def model(self) -> tuple[Classifier, nn.Module]:
        made = build_classifier(self.source, self.options.classes)
        return made, made.features.network.model

    def options_for(self, trial: Trial) -> ClassifyOptions:
        steps, images = self.options.steps, len(self.ready.train)
        if not self.fixed_steps:
            steps = max(round(steps * len(trial.indices) / images), MIN_STEPS)
        return replace(self.options, steps=steps, warmup_steps=steps // 20, seed=trial.seed)

    def learn(self, model: nn.Module, trial: Trial, on_step: OnStep) -> None:
        assert isinstance(model, Classifier)
        images = self.ready.train.subset(list(trial.indices))
        finetune_classification(model, images, self.options_for(trial), machine=self.where, on_step=on_step)

    def measure(self, model: nn.Module, on_batch: Callable[[int], None]) -> Fitted:
        held_out = self.ready.held_out
        logits = of_central_crops(model, held_out, **self.source.pixels(), machine=self.where, on_batch=on_batch)
        truth = torch.tensor(held_out.labels)
        right = (logits.argmax(1).cpu() == truth).double()
        moves = (right - right.mean()) / len(right)  # of each image on top1
        return Fitted(accuracies(logits, truth, seed=0), per_image=tuple(moves.tolist()))

    def glancing(self, most: int) -> Plan:
        held_out = self.ready.held_out
        return replace(self, ready=self.ready._replace(held_out=held_out.subset(evenly(len(held_out), most))))

    def examples(self, model: nn.Module) -> list[Example]:
        held_out = self.ready.held_out
        found = of_central_crops(model, held_out, **self.source.pixels(), machine=self.where).argmax(1).tolist()
        return [
            Example(
                side_by_side([picture_of(held_out.pixels(index, channels=self.source.in_channels, side=SIDE_PX))]),
                f"{held_out.names[truth]}, predicted as {held_out.names[guess]}",
            )
            for index, (truth, guess) in enumerate(zip(held_out.labels, found, strict=True))
        ]

    def classes(self) -> list[list[int]]:
        return [[label] for label in self.ready.train.labels]

    def facts(self) -> dict[str, Any]:
        return self.ready.facts()

    def pixels_in_words(self) -> str:
        return f"crops of {size_in_words(self.options.size)} px"

    def task(self) -> Task:
        return Task.of("classify", self.source, self.ready.train.names, {})


def finetune_classify(asked: FinetuneClassifyOptions) -> Results:
    """Fine-tune and measure."""
    ready = prepared(asked)
    options = options_of(asked, ready.source, ready.train)
    plan = Plan(ready.source, ready.where, ready, options, asked.steps is not None)
    return run_plan("finetune classify", asked, plan, starts_of(asked.start, ready.source), notes=ready.notes)


def starts_of(asked: Sequence[str], source: Source) -> tuple[Start, ...]:
    """Return the starts. Raise `OptionsError` for "decoder", which a classifier does not use."""
    if "decoder" in asked:
        raise OptionsError("A classifier has no decoder; use --start random, encoder or all.")
    return chosen_starts(asked, source, target=source.network("random").model)


def options_of(asked: FinetuneClassifyOptions, source: Source, train: ClassSet) -> ClassifyOptions:
    """Return the options for the whole training set.

    Raises:
        OptionsError: The options conflict with each other.
    """
    if (asked.mixup or asked.cutmix) and asked.batch_size % 2:
        raise OptionsError(f"mixup and CutMix expect an even batch_size, got {asked.batch_size}.")
    if asked.randaugment and source.in_channels != 3:
        raise OptionsError(
            f"RandAugment expects 3 channels (RGB), but the model has {source.in_channels}; omit --randaugment."
        )
    steps = asked.steps or max(asked.epochs * len(train) // asked.batch_size, MIN_STEPS)
    return ClassifyOptions(
        classes=len(train.names),
        steps=steps,
        size=source.image_size,
        mean=source.mean,
        std=source.std,
        batch_size=asked.batch_size,
        lr=asked.lr,
        layer_decay=asked.layer_decay,
        weight_decay=asked.weight_decay,
        warmup_steps=steps // 20,
        mixup=asked.mixup,
        cutmix=asked.cutmix,
        randaugment=asked.randaugment,
        random_erasing=asked.random_erasing,
        label_smoothing=asked.label_smoothing,
        seed=asked.seed,
    )
