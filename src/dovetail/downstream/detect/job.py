"""The job behind `dovetail finetune detect`."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from dovetail.data.reading.values import told_of_values, value_range
from dovetail.downstream.detect.average_precision import average_precision
from dovetail.downstream.detect.loop import DetectOptions, detections_of, finetune_detection
from dovetail.downstream.detect.model import DetectorSpec, build_detector
from dovetail.downstream.finetune_options import FinetuneDetectOptions
from dovetail.downstream.finished import Task, save_finished
from dovetail.downstream.labels.coco import CocoSet, check_files, find_coco
from dovetail.downstream.labels.coco_doubts import doubts_about_boxes, objects_at_edges
from dovetail.downstream.labels.coco_extent import box_within
from dovetail.downstream.labels.labelled import existing
from dovetail.downstream.labels.subsets import balanced_order, held_out, split_note
from dovetail.downstream.machine import Machine, machine
from dovetail.downstream.probe.job import resolved
from dovetail.downstream.progress import progress
from dovetail.downstream.start import Source, chosen_starts, source_of, weights_mark
from dovetail.downstream.table.ledger import Fitted, mark_of
from dovetail.downstream.table.results import Results, fingerprint, one_value
from dovetail.downstream.table.trials import Grid, Trial, check_trained, run_trials
from dovetail.errors import DataError, OptionsError, counted

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """Everything about a fine-tuning but its trial."""

    source: Source
    train: CocoSet
    val: CocoSet
    spec: DetectorSpec
    options: DetectOptions
    epochs: int
    fixed_steps: bool
    where: Machine

    def options_for(self, trial: Trial) -> DetectOptions:
        """Return the options of a trial: its seed, and the steps that its images take."""
        steps = self.options.steps
        if not self.fixed_steps:
            steps = max(self.epochs * len(trial.indices) // self.options.batch_size, 1)
        warmup = min(self.options.warmup_steps, steps // 4)
        return replace(self.options, steps=steps, warmup_steps=warmup, seed=trial.seed)


def finetune_detect(asked: FinetuneDetectOptions) -> Results:
    """Fine-tune and measure."""
    train, val, note = open_detection(asked.data)
    for fault in faults_of_objects(train, val, asked.task):
        raise DataError(fault)
    with_masks = asked.task == "masks"
    told = told_of_values([image.path for image in train.images], value_range())
    doubts = [doubt for part in (train, val) for doubt in doubts_about_boxes(part)]
    doubts += [told] * bool(told)
    for doubt in doubts:
        log.warning("%s", doubt)
    edges = [objects_at_edges(part, with_masks=with_masks, learned=part is train) for part in (train, val)]
    plan = plan_of(asked, train, val)
    with torch.device("meta"):
        _, target = build_detector(plan.source, plan.spec)
    out = Path(asked.out)

    def fit(trial: Trial) -> Fitted:
        model, scores = fit_detector(plan, trial)
        if trial.keep:
            save_finished(out, model, task_of(plan))
        return Fitted({name: one_value(value) for name, value in scores.items()})

    files = {train.path, val.path, *(image.path for image in (*train.images, *val.images))}
    prints = fingerprint(files)
    labels = [sorted({one.label for one in image.objects}) for image in train.images]
    seeds = range(asked.seed, asked.seed + asked.seeds)
    grid = Grid(
        chosen_starts(asked.start, plan.source, target=target),
        asked.fraction,
        seeds,
        len(train),
        lambda seed: balanced_order(labels, seed),
    )
    mark = mark_of(asked, plan.source.constructor, weights_mark(plan.source), prints, plan.where.mark())
    rows, _ = run_trials(grid, fit=fit, out=out, mark=mark)
    config = resolved(asked, plan.source, plan.where, plan.options_for(grid.whole()))
    facts = {
        "format": "coco",
        "fingerprint": prints,
        "train_images": len(train),
        "test_images": len(val),
        "classes": len(train.names),
    }
    notes = (*(one for one in (note, *doubts, *edges) if one), *grid.notes())
    return Results("finetune detect", rows, config, facts, plan.where.device, notes)


def fit_detector(plan: Plan, trial: Trial) -> tuple[nn.Module, dict[str, float]]:
    """Return the fine-tuned detector of a trial and its scores."""
    torch.manual_seed(trial.seed)
    model, target = build_detector(plan.source, plan.spec)
    plan.source.load(target, trial.start)
    options = plan.options_for(trial)
    with progress(f"{trial.start}, {counted(len(trial.indices), 'image')}", options.steps) as advance:
        finetune_detection(
            model,
            plan.train.subset(list(trial.indices)),
            options,
            machine=plan.where,
            on_step=lambda step, loss: advance(1),
        )
    check_trained(model)
    with progress("measuring", len(plan.val)) as advance:
        found = detections_of(model, plan.val, machine=plan.where, on_batch=advance)
    scores = {f"box {name}": value for name, value in average_precision(plan.val, found, "bbox").items()}
    if plan.spec.task == "masks":
        scores |= {f"mask {name}": value for name, value in average_precision(plan.val, found, "segm").items()}
    return model, scores


def open_detection(data: str | Path) -> tuple[CocoSet, CocoSet, str]:
    """Return the training and the validation part of a COCO set, and what to know about the split.

    Raises:
        DataError: Where there is no COCO set, or its parts have other categories.
    """
    found = find_coco(existing(data))
    if found is None:
        raise DataError(
            f"{data} is no COCO set; give a JSON file, or a folder with annotations/instances_train*.json and "
            "instances_val*.json."
        )
    train = CocoSet.open(found[0])
    if found[1] is None:
        check_files(train)
        kept, held = held_out(len(train))
        return train.subset(kept), train.subset(held), split_note(held, kept)
    val = CocoSet.open(found[1])
    if (val.names, val.ids) != (train.names, train.ids):
        raise DataError(f"{found[1]} has other categories than {found[0]}; give both the same list.")
    check_files(train, val)
    return train, val, ""


def faults_of_objects(train: CocoSet, val: CocoSet, task: str) -> list[str]:
    """Return a sentence where there is nothing to learn from or to measure on, for `task` "boxes" or "masks"."""
    found: list[str] = []
    for data, purpose in ((train, "learn from"), (val, "measure on")):
        pairs = [(one, image) for image in data.images for one in image.objects if not one.crowd]
        if not any(box_within(one, image) is not None for one, image in pairs):
            found.append(
                f"{data.path} holds no object to {purpose} among {counted(len(data), 'image')}; add annotations."
            )
        elif task == "masks" and not any(one.segmentation is not None for one, _ in pairs):
            found.append(f"{data.path} holds no mask to {purpose}, only boxes; give --task boxes.")
    return found


def plan_of(asked: FinetuneDetectOptions, train: CocoSet, val: CocoSet) -> Plan:
    """Return the plan, with everything on "auto" filled in."""
    source = source_of(asked.run, asked.model)
    where = machine(asked.accelerator, asked.precision, asked.workers)
    side = asked.image_size
    if side < 32:
        raise OptionsError(f"image_size is {side}; it must be at least 32 px.")
    sides = tuple(round(side * share) for share in (0.8, 0.84, 0.88, 0.92, 0.96, 1.0))
    spec = DetectorSpec(
        asked.task,
        asked.head,
        len(train.names),
        sides,
        round(side * 1333 / 800),
        asked.box_head,
        asked.head_norm,
        asked.head_width,
        asked.proposals,
    )
    with torch.device("meta"):
        model, _ = build_detector(source, spec)
    tokens = "ViTFPN" in {type(module).__name__ for module in model.modules()}
    batch = asked.batch_size
    rate = 1e-4 if tokens else 0.02 * batch / 16
    options = DetectOptions(
        steps=asked.steps or max(asked.epochs * len(train) // batch, 1),
        batch_size=batch,
        optimiser="adamw" if tokens else "sgd",
        lr=rate if asked.lr == "auto" else asked.lr,
        layer_decay=asked.layer_decay,
        weight_decay=0.05 if tokens else 1e-4,
        drops=(8 / 12, 11 / 12) if tokens else (2 / 3, 8 / 9),
        with_masks=spec.task == "masks",
        batch_norm=asked.batch_norm,
        seed=asked.seed,
    )
    return Plan(source, train, val, spec, options, asked.epochs, asked.steps is not None, where)


def task_of(plan: Plan) -> Task:
    """Return what is needed to use the detector later."""
    return Task.of("detect", plan.source, plan.train.names, {"spec": asdict(plan.spec), "ids": list(plan.train.ids)})
