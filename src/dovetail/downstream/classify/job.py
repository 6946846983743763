"""The job behind `dovetail finetune classify`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from dovetail.downstream.classify.loop import Classifier, ClassifyOptions, finetune_classification
from dovetail.downstream.finetune_options import FinetuneClassifyOptions
from dovetail.downstream.finished import Task, save_finished
from dovetail.downstream.labels.class_sets import ClassSet
from dovetail.downstream.labels.subsets import balanced_order
from dovetail.downstream.machine import Machine
from dovetail.downstream.probe.features import Features, of_central_crops
from dovetail.downstream.probe.job import accuracies, prepared, resolved
from dovetail.downstream.progress import progress
from dovetail.downstream.start import Source, Start, chosen_starts, weights_mark
from dovetail.downstream.table.ledger import Fitted, mark_of
from dovetail.downstream.table.results import Results, Score
from dovetail.downstream.table.trials import Grid, Trial, check_trained, run_trials
from dovetail.errors import OptionsError, counted

MIN_STEPS = 100


def build_classifier(source: Source, classes: int) -> Classifier:
    """Return a classifier with random weights; weights go into `features.network.model`.

    The mean over the deepest map, or a ViT's class token after the final norm, goes through a linear layer. What of the
    network the classifier does not read (a decoder) is frozen.
    """
    network = source.network("random")
    network.requires_grad_(True)
    features = Features(network)
    tap = "cls" if "cls" in network.taps else "pooled" if "pooled" in network.taps else features.tap
    network.prune([tap])
    return Classifier(features, classes)


def finetune_classify(asked: FinetuneClassifyOptions) -> Results:
    """Fine-tune and measure."""
    ready = prepared(asked)
    source, where, train, held_out, notes = ready
    options = options_of(asked, source, train)
    out = Path(asked.out)

    def fit(trial: Trial) -> Fitted:
        model, scores = fit_classifier(source, options, train, held_out, trial, where, fixed=asked.steps is not None)
        if trial.keep:
            save_finished(out, model, Task.of("classify", source, train.names, {}))
        return Fitted(scores)

    seeds = range(asked.seed, asked.seed + asked.seeds)
    classes = [[label] for label in train.labels]
    grid = Grid(
        starts_of(asked.start, source),
        asked.fraction,
        seeds,
        len(train),
        lambda seed: balanced_order(classes, seed),
    )
    facts = ready.facts()
    mark = mark_of(asked, source.constructor, weights_mark(source), facts["fingerprint"], where.mark())
    rows, _ = run_trials(grid, fit=fit, out=out, mark=mark)
    config = resolved(asked, source, where, options)
    return Results("finetune classify", rows, config, facts, where.device, (*notes, *grid.notes()))


def starts_of(asked: Sequence[str], source: Source) -> tuple[Start, ...]:
    """Return the starting points; raise `OptionsError` for the decoder alone, which a classifier does not read."""
    if "decoder" in asked:
        raise OptionsError("A classifier has no decoder; give --start random, encoder or all.")
    return chosen_starts(asked, source, target=source.network("random").model)


def options_of(asked: FinetuneClassifyOptions, source: Source, train: ClassSet) -> ClassifyOptions:
    """Return the options of the whole training set.

    Raises:
        OptionsError: For options that do not go together.
    """
    if (asked.mixup or asked.cutmix) and asked.batch_size % 2:
        raise OptionsError(f"batch_size is {asked.batch_size}; mixup and CutMix pair images, so make it even.")
    if asked.randaugment and source.in_channels != 3:
        raise OptionsError(
            f"The model takes {source.in_channels} channels; RandAugment is for 3 (RGB), so leave it out."
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


def fit_classifier(
    source: Source,
    options: ClassifyOptions,
    train: ClassSet,
    held_out: ClassSet,
    trial: Trial,
    where: Machine,
    *,
    fixed: bool,
) -> tuple[Classifier, dict[str, Score]]:
    """Return the fine-tuned model of a trial and its scores; the steps are in proportion to the images unless fixed."""
    torch.manual_seed(trial.seed)
    model = build_classifier(source, options.classes)
    source.load(model.features.network.model, trial.start)
    if not fixed:
        steps = max(round(options.steps * len(trial.indices) / len(train)), MIN_STEPS)
        options = replace(options, steps=steps, warmup_steps=steps // 20)
    options = replace(options, seed=trial.seed)
    with progress(f"{trial.start}, {counted(len(trial.indices), 'image')}", options.steps) as advance:
        finetune_classification(
            model,
            train.subset(list(trial.indices)),
            options,
            machine=where,
            on_step=lambda step, loss: advance(1),
        )
    check_trained(model)
    with progress("measuring", len(held_out)) as advance:
        logits = of_central_crops(model, held_out, **source.pixels(), machine=where, on_batch=advance)
    return model, accuracies(logits, torch.tensor(held_out.labels), seed=0)
