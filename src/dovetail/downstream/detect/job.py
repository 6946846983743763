"""Implements `dovetail finetune detect`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn
from torchvision.ops import box_convert

from dovetail.data.reading.peaks import told_of_values
from dovetail.data.reading.values import value_range
from dovetail.downstream.detect.average_precision import average_precision
from dovetail.downstream.detect.loop import DetectOptions, detect, detections_of, finetune_detection
from dovetail.downstream.detect.model import DetectorSpec, build_detector
from dovetail.downstream.examples import SHOWN_SCORE, Example, boxed
from dovetail.downstream.finished import Task
from dovetail.downstream.fit import OnStep
from dovetail.downstream.job import FinetunePlan, evenly, run_plan
from dovetail.downstream.labels.coco import CocoSet, find_coco, with_files
from dovetail.downstream.labels.coco_doubts import doubts_about_boxes, objects_at_edges
from dovetail.downstream.labels.coco_object import box_within
from dovetail.downstream.labels.given import is_given
from dovetail.downstream.labels.given_objects import given_objects
from dovetail.downstream.labels.labelled import existing
from dovetail.downstream.labels.subsets import held_out, split_note
from dovetail.downstream.machine import Machine, machine
from dovetail.downstream.options import FinetuneDetectOptions
from dovetail.downstream.start import Source, chosen_starts, source_of
from dovetail.downstream.table.ledger import Fitted
from dovetail.downstream.table.results import Results, fingerprint, one_value
from dovetail.downstream.table.trials import Trial
from dovetail.errors import DataError, OptionsError, counted

QUICK = {"image_size": 320, "batch_size": 4, "head_width": 0.25, "proposals": 64}  # for training without a GPU

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan(FinetunePlan):
    """A fine-tuning for detection."""

    source: Source
    train: CocoSet
    val: CocoSet
    spec: DetectorSpec
    options: DetectOptions
    epochs: int
    fixed_steps: bool
    where: Machine

    def model(self) -> tuple[nn.Module, nn.Module]:
        return build_detector(self.source, self.spec)

    def options_for(self, trial: Trial) -> DetectOptions:
        steps = self.options.steps
        if not self.fixed_steps:
            steps = max(self.epochs * len(trial.indices) // self.options.batch_size, 1)
        warmup = min(self.options.warmup_steps, steps // 4)
        return replace(self.options, steps=steps, warmup_steps=warmup, seed=trial.seed)

    def learn(self, model: nn.Module, trial: Trial, on_step: OnStep) -> None:
        images = self.train.subset(list(trial.indices))
        finetune_detection(model, images, self.options_for(trial), machine=self.where, on_step=on_step)

    def measure(self, model: nn.Module, on_batch: Callable[[int], None]) -> Fitted:
        found = detections_of(model, self.val, machine=self.where, on_batch=on_batch)
        scores = {f"box {name}": value for name, value in average_precision(self.val, found, "bbox").items()}
        if self.spec.task == "masks":
            scores |= {f"mask {name}": value for name, value in average_precision(self.val, found, "segm").items()}
        return Fitted({name: one_value(value) for name, value in scores.items()})

    def glancing(self, most: int) -> Plan:
        return replace(self, val=self.val.subset(evenly(len(self.val), most)))

    def examples(self, model: nn.Module) -> list[Example]:
        found = []
        for image in self.val.images:
            pixels = image.pixels()
            detected = detect(model, [pixels.float() / 255], self.where)[0]
            boxes = torch.tensor([one.box for one in image.objects], dtype=torch.float32).reshape(-1, 4)
            truth = box_convert(boxes, "xywh", "xyxy")
            sure = detected["boxes"][detected["scores"] >= SHOWN_SCORE]
            caption = (
                f"{len(truth)} annotated (green), {len(sure) or 'none'} found with a score of {SHOWN_SCORE:g} or more "
                "(orange)"
            )
            found.append(boxed(pixels, truth, sure, caption=caption))
        return found

    def classes(self) -> list[list[int]]:
        return [sorted({one.label for one in image.objects}) for image in self.train.images]

    def facts(self) -> dict[str, Any]:
        parts = (self.train, self.val)
        content = [mark for part in parts for mark in part.content]
        stored = [part for part in parts if not part.content]
        files = {*(part.path for part in stored), *(image.path for part in stored for image in part.images)}
        return {
            "format": "coco",
            "fingerprint": fingerprint(files, content),
            "train_images": len(self.train),
            "test_images": len(self.val),
            "classes": len(self.train.names),
        }

    def pixels_in_words(self) -> str:
        shortest, longest = min(self.spec.sides), max(self.spec.sides)
        return f"shorter side {shortest} to {longest} px"

    def advice(self) -> str:
        """Return a sentence if the steps take minutes without a GPU, with those of `QUICK` that are not in use."""
        quick, now = QUICK["image_size"] ** 2 * QUICK["batch_size"], max(self.spec.sides)
        if self.where.device != "cpu" or now**2 * self.options.batch_size <= quick:
            return ""
        spec, batch = self.spec, self.options.batch_size
        used = {"image_size": now, "batch_size": batch, "head_width": spec.head_width, "proposals": spec.proposals}
        if spec.head == "retinanet":  # it has neither
            del used["head_width"], used["proposals"]
        slow = [name for name in used if used[name] > QUICK[name]]
        faster = " ".join(f"--{name.replace('_', '-')} {QUICK[name]:g}" for name in slow)
        return f"Without a GPU, each of these steps may take minutes; {faster} makes them faster."

    def task(self) -> Task:
        options = {"spec": asdict(self.spec), "ids": list(self.train.ids)}
        return Task.of("detect", self.source, self.train.names, options)


def finetune_detect(asked: FinetuneDetectOptions) -> Results:
    """Fine-tune and evaluate."""
    train, val, note = open_detection(asked.data)
    for fault in faults_of_objects(train, val, asked.task):
        raise DataError(fault)
    told = "" if train.content else told_of_values([image.path for image in train.images], value_range())
    doubts = [doubt for part in (train, val) for doubt in doubts_about_boxes(part)]
    doubts += [told] * bool(told)
    for doubt in doubts:
        log.warning("%s", doubt)
    with_masks = asked.task == "masks"
    edges = [objects_at_edges(part, with_masks=with_masks, learned=part is train) for part in (train, val)]
    plan = plan_of(asked, train, val)
    with torch.device("meta"):
        starts = chosen_starts(asked.start, plan.source, target=plan.model()[1])
    notes = [one for one in (note, *doubts, *edges) if one]
    return run_plan("finetune detect", asked, plan, starts, notes=notes)


def open_detection(data: Any) -> tuple[CocoSet, CocoSet, str]:
    """Return the training and validation parts of a COCO dataset, or of datasets in Python, and a note on the split.

    Raises:
        DataError: The data is not a COCO dataset, or its parts have different categories.
    """
    if is_given(data):
        return given_objects(data)
    found = find_coco(existing(data))
    if found is None:
        raise DataError(
            f"{data} is not a COCO dataset; use a JSON file, or a folder with annotations/instances_train*.json and "
            "instances_val*.json."
        )
    train = CocoSet.open(found[0])
    if found[1] is None:
        train = with_files(train)[0]
        kept, held = held_out(len(train))
        return train.subset(kept), train.subset(held), split_note(held, kept)
    val = CocoSet.open(found[1])
    if (val.names, val.ids) != (train.names, train.ids):
        raise DataError(f"{found[1]} and {found[0]} have different categories; use the same list in both.")
    train, val = with_files(train, val)
    return train, val, ""


def faults_of_objects(train: CocoSet, val: CocoSet, task: str) -> list[str]:
    """Return sentences if there is nothing to train or evaluate on, for `task` "boxes" or "masks"."""
    found: list[str] = []
    for data, purpose in ((train, "train on"), (val, "evaluate on")):
        pairs = [(one, image) for image in data.images for one in image.objects if not one.crowd]
        if not any(box_within(one, image) is not None for one, image in pairs):
            found.append(f"{data.path} has no objects to {purpose} in {counted(len(data), 'image')}; add annotations.")
        elif task == "masks" and not any(one.segmentation is not None for one, _ in pairs):
            found.append(f"{data.path} has no masks to {purpose}, only boxes; use --task boxes.")
    return found


def plan_of(asked: FinetuneDetectOptions, train: CocoSet, val: CocoSet) -> Plan:
    """Return the plan with all "auto" values resolved."""
    source = source_of(asked.run, asked.model, encoder=asked.encoder)
    where = machine(asked.accelerator, asked.precision, asked.workers)
    side = asked.image_size
    if side < 32:
        raise OptionsError(f"image_size expects at least 32 px, got {side}.")
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
