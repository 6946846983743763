"""The job behind `dovetail finetune segment`.

Steps, rates and heads are for the whole training set; the protocols of VOC, Cityscapes and ADE20K are in `protocols`,
for FCNs, and on ADE20K for ViTs. Other models are trained with AdamW, 1e-4 for ViTs and 5e-4 for others, weight decay
0.05, polynomial decay, for the steps of the set's FCN. Other sets take 40 passes over the images (500 to
20,000 steps) in crops of 256 px.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dovetail.downstream.finetune_options import FinetuneSegmentOptions
from dovetail.downstream.finished import Task, save_finished
from dovetail.downstream.labels.labelled import InMemory, LabelledSet
from dovetail.downstream.labels.mask_sets import SegmentationSet, check_told_apart
from dovetail.downstream.labels.readers import SegmentationData, open_segmentation
from dovetail.downstream.labels.subsets import balanced_order
from dovetail.downstream.machine import Machine, machine
from dovetail.downstream.probe.job import resolved
from dovetail.downstream.progress import progress
from dovetail.downstream.segment.augment import Augmentation
from dovetail.downstream.segment.loop import confusion_matrix, finetune_segmentation
from dovetail.downstream.segment.model import PARTS, FCNSpec, HeadName, Segmenter, Unpacked, ViTMaps, build_segmenter
from dovetail.downstream.segment.options import SegmentOptions, Window
from dovetail.downstream.segment.protocols import PROTOCOLS, Protocol, Training
from dovetail.downstream.start import Source, chosen_starts, source_of, weights_mark
from dovetail.downstream.table.ledger import Fitted, mark_of
from dovetail.downstream.table.results import Results, fingerprint, one_value
from dovetail.downstream.table.trials import Grid, Trial, check_trained, run_trials
from dovetail.errors import DovetailError, ModelError, OptionsError, counted
from dovetail.networks.decoders import EncoderFCN
from dovetail.networks.vit import is_vit
from dovetail.networks.vit_fpn import ViTFPN

MEMORY_BYTES = 2**30  # sets that take no more are read once
MIN_STEPS, MAX_STEPS, EPOCHS, OTHER_CROP = 500, 20_000, 40, 256


@dataclass(frozen=True)
class Plan:
    """Everything about a fine-tuning but its trial.

    Attributes:
        source: Where the model comes from.
        data: The labelled set.
        decoder: Of an encoder without one.
        fcn: How an FCN is built.
        output_stride: Of an FCN's ResNet.
        options: Of fine-tuning; `steps` are those of the whole set.
        fixed_steps: Whether `steps` were given, so that they hold for every fraction.
        fixed_warmup: Whether steps of warm-up were given; else they are a quarter of the steps at most.
        window: Of sliding inference; None looks at whole images.
        where: Device, number format, threads.
    """

    source: Source
    data: SegmentationData
    decoder: Any
    fcn: FCNSpec
    output_stride: int
    options: SegmentOptions
    fixed_steps: bool
    fixed_warmup: bool
    window: Window | None
    where: Machine

    def model(self) -> tuple[nn.Module, nn.Module]:
        """Return a new model, and the module in it that weights go into."""
        return build_segmenter(
            self.source,
            classes=self.data.classes,
            decoder=self.decoder,
            output_stride=self.output_stride,
            fcn=self.fcn,
        )

    def options_for(self, trial: Trial) -> SegmentOptions:
        """Return the options of a trial: its seed, and its images' share of the steps for all, at least 500."""
        steps, warmup = self.options.steps, self.options.warmup_steps
        if not self.fixed_steps:
            steps = max(round(steps * len(trial.indices) / len(self.data.train)), MIN_STEPS)
        if not self.fixed_warmup:
            warmup = min(warmup, steps // 4)
        return replace(self.options, steps=steps, warmup_steps=warmup, seed=trial.seed)


def finetune_segment(asked: FinetuneSegmentOptions) -> Results:
    """Fine-tune and measure."""
    data = open_segmentation(
        asked.data, classes=asked.classes, ignore_index=asked.ignore_index, label_map=list(asked.label_map)
    )
    plan = plan_of(asked, data)
    with torch.device("meta"):
        starts = chosen_starts(asked.start, plan.source, target=plan.model()[1])
    train, val = in_memory(data.train), in_memory(data.val)
    check_told_apart(data.train, train, "learn from", least=2)
    check_told_apart(data.val, val, "measure on", least=1)
    out, prints = Path(asked.out), fingerprint([*data.train.files(), *data.val.files()])

    def fit(trial: Trial) -> Fitted:
        model, found = fit_segmenter(plan, train, val, trial)
        if trial.keep:
            save_finished(out, model, task_of(plan))
        return found

    seeds = range(asked.seed, asked.seed + asked.seeds)
    classes = cache(lambda: class_lists(data.train))  # once for all seeds
    grid = Grid(starts, asked.fraction, seeds, len(data.train), lambda seed: balanced_order(classes(), seed))
    meaning = [data.label_map] if data.label_map is not None else []  # a table's content, too
    mark = mark_of(asked, plan.source.constructor, weights_mark(plan.source), prints, plan.where.mark(), *meaning)
    rows, details = run_trials(grid, fit=fit, out=out, mark=mark)
    config = resolved(asked, plan.source, plan.where, plan.options_for(grid.whole()))
    facts = {
        "format": data.format,
        "fingerprint": prints,
        "train_images": len(data.train),
        "test_images": len(data.val),
        "classes": data.classes,
    }
    notes = (*((data.note,) if data.note else ()), *grid.notes())
    return Results("finetune segment", rows, config, facts, plan.where.device, notes, details=details)


def fit_segmenter(plan: Plan, train: LabelledSet, val: LabelledSet, trial: Trial) -> tuple[nn.Module, Fitted]:
    """Return the fine-tuned model of a trial, its scores, and the IoU of each class."""
    torch.manual_seed(trial.seed)
    model, target = plan.model()
    plan.source.load(target, trial.start)
    options = plan.options_for(trial)
    chosen, device, threads = subset(train, trial.indices), plan.where.device, plan.where.threads
    with progress(f"{trial.start}, {counted(len(trial.indices), 'image')}", options.steps) as advance:
        finetune_segmentation(
            model, chosen, options, device=device, on_step=lambda step, loss: advance(1), threads=threads
        )
    check_trained(model)
    with progress("measuring", len(val)) as advance:
        matrix = confusion_matrix(
            model, val, options, window=plan.window, device=device, threads=threads, on_batch=advance
        )
    scores = matrix.scores()
    values = {"mIoU": scores.miou, "aAcc": scores.accuracy, "mAcc": scores.mean_accuracy}
    bounds = dict(zip(values, matrix.intervals(), strict=True))
    iou = {name: share if share == share else None for name, share in zip(plan.data.names, scores.iou, strict=True)}
    return model, Fitted(
        {name: one_value(value, bounds[name]) for name, value in values.items()}, {"iou_per_class": iou}
    )


def subset(data: LabelledSet, indices: tuple[int, ...]) -> LabelledSet:
    """Return some items of a set."""
    if isinstance(data, InMemory):
        return InMemory([data[index] for index in indices])
    whole: SegmentationSet = data  # type: ignore[assignment]
    return whole.subset(list(indices))


def in_memory(data: SegmentationSet) -> LabelledSet:
    """Return a small set read once, a large one as it is."""
    first = data[0]
    size = first.image.nbytes + first.mask.nbytes
    if size * len(data) > MEMORY_BYTES:
        return data
    items = [first]
    with progress("reading", len(data) - 1) as advance:
        for index in range(1, len(data)):
            items.append(data[index])
            advance(1)
    return InMemory(items)


def class_lists(data: SegmentationSet) -> list[list[int]]:
    """Return the classes that occur in each image."""
    found = []
    with progress("reading classes", len(data)) as advance:
        for index in range(len(data)):
            found.append(data.classes_in(index))
            advance(1)
    return found


def plan_of(asked: FinetuneSegmentOptions, data: SegmentationData) -> Plan:
    """Return the plan, with everything on "auto" filled in by the protocol of the set or the rules of the module."""
    source = source_of(asked.run, asked.model)
    if source.in_channels != 3:
        raise ModelError(f"The model takes {source.in_channels} channels; labelled sets are read as 3 (RGB).")
    where = machine(asked.accelerator, asked.precision, asked.workers)
    protocol = PROTOCOLS.get(data.format, Protocol())
    head, tokens = kind_of(source, asked.decoder)
    own_fcn = head == "fcn" and not source.constructor.startswith("torchvision.")
    stride, weight = asked.output_stride, asked.auxiliary_weight
    if stride == "auto":
        stride = protocol.output_stride if own_fcn and can_dilate(source, asked.decoder) else 32
    elif stride != 32 and not own_fcn:
        raise OptionsError(f"{source.constructor} keeps its own stride; leave --output-stride out.")
    if weight not in ("auto", 0) and not own_fcn:
        raise OptionsError(f"{source.constructor} has no auxiliary head; leave --auxiliary-weight out.")
    crop = asked.crop_size or protocol.crop or OTHER_CROP
    training = protocol.training.get(head) or training_of(asked, data, protocol, tokens=tokens)
    options = options_of(asked, data, source, protocol, training, crop=crop)
    spec = protocol.fcn if weight == "auto" else replace(protocol.fcn, auxiliary=weight > 0)
    return Plan(
        source,
        data,
        asked.decoder,
        spec,
        stride,
        replace(options, precision=where.precision, align_corners=protocol.align_corners and head == "fcn"),
        asked.steps != "auto",
        asked.warmup_steps != "auto",
        window_of(asked.inference, training.window or protocol.window, crop),
        where,
    )


def training_of(asked: FinetuneSegmentOptions, data: SegmentationData, protocol: Protocol, *, tokens: bool) -> Training:
    """Return how a model without a protocol of its own is trained, by the rules of the module."""
    passes = EPOCHS * len(data.train) // asked.batch_size
    steps = protocol.steps or min(max(passes, MIN_STEPS), MAX_STEPS)
    return Training(steps, 1e-4 if tokens else 5e-4, 0.05, optimiser="adamw", decay_vectors=False)


def options_of(
    asked: FinetuneSegmentOptions,
    data: SegmentationData,
    source: Source,
    protocol: Protocol,
    training: Training,
    *,
    crop: int,
) -> SegmentOptions:
    """Return how the model is fine-tuned: what was asked for, else as `training` says."""

    def chosen(name: str, otherwise: Any) -> Any:
        value = getattr(asked, name)
        return otherwise if value == "auto" else value

    return SegmentOptions(
        classes=data.classes,
        steps=chosen("steps", training.steps),
        batch_size=asked.batch_size,
        optimiser=chosen("optimiser", training.optimiser),
        lr=chosen("lr", training.lr),
        lr_scale={"encoder": asked.encoder_lr_scale} if asked.encoder_lr_scale != 1 else {},
        parts=PARTS,
        layer_decay=chosen("layer_decay", training.layer_decay),
        weight_decay=chosen("weight_decay", training.weight_decay),
        decay_vectors=training.decay_vectors,
        warmup_steps=chosen("warmup_steps", training.warmup_steps),
        power=training.power,
        floor=training.floor,
        drops=training.drops,
        batch_norm=asked.batch_norm,
        augmentation=Augmentation(
            crop_px=(crop, crop),
            scale=protocol.scale,
            within_px=protocol.within_px,
            most_of_one_class=protocol.most_of_one_class,
            distort=protocol.distort if asked.distort == "auto" else asked.distort == "on",
        ),
        auxiliary_weight=chosen("auxiliary_weight", 0.4),
        ignore_index=data.train.ignore_index,
        mean=three(source.mean),
        std=three(source.std),
        seed=asked.seed,
    )


def three(values: tuple[float, ...]) -> tuple[float, float, float]:
    """Return three numbers as such."""
    red, green, blue = values
    return red, green, blue


def kind_of(source: Source, decoder: str) -> tuple[HeadName, bool]:
    """Return the kind of head that the model has, and whether its encoder is a ViT."""
    with torch.device("meta"):
        model, _ = build_segmenter(source, classes=2, decoder=decoder)  # type: ignore[arg-type]
    body = model.body if isinstance(model, Segmenter) else model
    encoder = dict(body.named_children()).get("encoder")
    tokens = encoder is not None and type(encoder).__module__.startswith("timm.") and is_vit(encoder)
    if isinstance(body, (EncoderFCN, Unpacked)):
        return "fcn", tokens
    return ("vit-fpn" if isinstance(body, ViTFPN) else "upernet" if isinstance(body, ViTMaps) else "other"), tokens


def can_dilate(source: Source, decoder: str) -> bool:
    """Whether an FCN's encoder has a ResNet's stages; torchvision's own is dilated already."""
    try:
        with torch.device("meta"):
            build_segmenter(source, classes=2, decoder=decoder, output_stride=16)  # type: ignore[arg-type]
    except DovetailError:
        return False
    return not source.constructor.startswith("torchvision.")


def window_of(inference: str, published: Window | None, crop: int) -> Window | None:
    """Return the window of sliding inference; None for whole images."""
    if inference == "whole":
        return None
    if inference == "slide":
        return Window(crop, max(crop * 2 // 3, 1))
    return published


def task_of(plan: Plan) -> Task:
    """Return what is needed to use the model later."""
    options = {
        "decoder": plan.decoder,
        "output_stride": plan.output_stride,
        "fcn": asdict(plan.fcn),
        "window": None if plan.window is None else [plan.window.size_px, plan.window.stride_px],
        "within_px": plan.options.augmentation.within_px,
        "align_corners": plan.options.align_corners,
    }
    return Task.of("segment", plan.source, plan.data.names, options)
