"""The job behind `dovetail finetune segment`.

Protocols, from DeCon's configurations (mmsegmentation's FCN; steps and rates for the whole training set):

| set | crop | steps | lr, weight decay | schedule | stride | inference |
|---|---|---|---|---|---|---|
| VOC | 513 | 30,000 | 0.003, 1e-4 | tenths at 70 and 90 % | 16 | whole |
| Cityscapes | 769 | 90,000 | 0.01, 1e-4 | tenths at 70 and 90 % | 16 | windows of 769 every 513 |
| ADE20K | 512 | 80,000 | 0.01, 5e-4 | polynomial, 0.9 | 8 | whole |

All with SGD, 16 images a step, random scale 0.5 to 2 of the image itself (mmsegmentation first resizes images to the
crop's height), `align_corners` off, no auxiliary head. These rates are those of FCNs; other models are trained with
AdamW, 1e-4 for ViTs and 5e-4 for others, weight decay 0.05, polynomial decay. Other sets take 40 passes over the
images (500 to 20,000 steps) in crops of 256 px.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from dovetail.errors import DovetailError
from dovetail.networks.decoders import EncoderFCN
from dovetail.networks.vit import is_vit
from dovetail.transfer.augment import Augmentation
from dovetail.transfer.finished import Task, save_finished
from dovetail.transfer.labelled import InMemory, LabelledSet
from dovetail.transfer.ledger import Fitted, mark_of
from dovetail.transfer.machine import Machine, machine
from dovetail.transfer.mask_sets import SegmentationSet
from dovetail.transfer.probing import plain
from dovetail.transfer.progress import progress
from dovetail.transfer.readers import SegmentationData, open_segmentation
from dovetail.transfer.results import Results, fingerprint, one_value
from dovetail.transfer.segment import SegmentOptions, Window, confusion_matrix, finetune_segmentation
from dovetail.transfer.segmenters import PARTS, Segmenter, Unpacked, build_segmenter
from dovetail.transfer.start import Source, check_starts, source_of, weights_mark
from dovetail.transfer.subsets import balanced_order, check_share
from dovetail.transfer.trials import Grid, Trial, run_trials

MEMORY_BYTES = 2**30  # sets that take no more are read once
MIN_STEPS, MAX_STEPS, EPOCHS, OTHER_CROP = 500, 20_000, 40, 256


@dataclass(frozen=True)
class Protocol:
    """What the module's table says about a set."""

    crop: int
    steps: int
    lr: float
    weight_decay: float
    drops: tuple[float, ...]
    output_stride: Literal[8, 16]
    window: Window | None = None


PROTOCOLS: Mapping[str, Protocol] = {
    "voc": Protocol(513, 30_000, 0.003, 1e-4, (0.7, 0.9), 16),
    "cityscapes": Protocol(769, 90_000, 0.01, 1e-4, (0.7, 0.9), 16, Window(769, 513)),
    "ade20k": Protocol(512, 80_000, 0.01, 5e-4, (), 8),
}


@dataclass(frozen=True)
class Plan:
    """Everything about a fine-tuning but its trial.

    Attributes:
        source: Where the model comes from.
        data: The labelled set.
        decoder: Of an encoder without one.
        output_stride: Of an FCN's ResNet.
        options: Of fine-tuning; `steps` are those of the whole set.
        fixed_steps: Whether `steps` were given, so that they hold for every fraction.
        window: Of sliding inference; None looks at whole images.
        where: Device, number format, threads.
    """

    source: Source
    data: SegmentationData
    decoder: Any
    output_stride: int
    options: SegmentOptions
    fixed_steps: bool
    window: Window | None
    where: Machine

    def model(self) -> tuple[nn.Module, nn.Module]:
        """Return a new model, and the module in it that weights go into."""
        return build_segmenter(
            self.source, classes=self.data.classes, decoder=self.decoder, output_stride=self.output_stride
        )

    def steps(self, images: int) -> int:
        """Return the steps for some of the images: their share of those for all, at least 500."""
        if self.fixed_steps:
            return self.options.steps
        return max(round(self.options.steps * images / len(self.data.train)), MIN_STEPS)


def finetune_segment(asked: Mapping[str, Any]) -> Results:
    """Fine-tune and measure; `asked` are the parameters of the command."""
    data = open_segmentation(asked["data"], classes=asked["classes"])
    plan = plan_of(asked, data)
    starts = check_starts(asked["start"], plan.source)
    train, val = in_memory(data.train), in_memory(data.val)
    out, prints = Path(asked["out"]), fingerprint([*data.train.files(), *data.val.files()])

    def fit(trial: Trial) -> Fitted:
        model, found = fit_segmenter(plan, train, val, trial)
        if trial.keep:
            save_finished(out, model, task_of(plan))
        return found

    seeds = range(asked["seed"], asked["seed"] + asked["seeds"])
    grid = Grid(
        starts, asked["fraction"], seeds, len(data.train), lambda seed: balanced_order(class_lists(data.train), seed)
    )
    mark = mark_of(asked, plan.source.constructor, weights_mark(plan.source), prints, plan.where.mark())
    rows, details = run_trials(grid, fit=fit, out=out, mark=mark)
    resolved = {**plain(asked), **{f"resolved_{name}": value for name, value in asdict(plan.options).items()}}
    facts = {
        "format": data.format,
        "fingerprint": prints,
        "train_images": len(data.train),
        "test_images": len(data.val),
        "classes": data.classes,
    }
    notes = (data.note,) if data.note else ()
    return Results("finetune segment", rows, resolved, facts, plan.where.device, notes, details=details)


def fit_segmenter(plan: Plan, train: LabelledSet, val: LabelledSet, trial: Trial) -> tuple[nn.Module, Fitted]:
    """Return the fine-tuned model of a trial, its scores, and the IoU of each class."""
    torch.manual_seed(trial.seed)
    model, target = plan.model()
    plan.source.load(target, trial.start)
    steps = plan.steps(len(trial.indices))
    options = SegmentOptions(**{**shallow(plan.options), "steps": steps, "seed": trial.seed})
    chosen, device, threads = subset(train, trial.indices), plan.where.device, plan.where.threads
    with progress(f"{trial.start}, {len(trial.indices)} images", steps) as advance:
        finetune_segmentation(
            model, chosen, options, device=device, on_step=lambda step, loss: advance(1), threads=threads
        )
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


def shallow(options: SegmentOptions) -> dict[str, Any]:
    """Return a copy of the options' fields."""
    return dict(vars(options))


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


def plan_of(asked: Mapping[str, Any], data: SegmentationData) -> Plan:
    """Return the plan, with everything on "auto" filled in by the table of the module."""
    source = source_of(asked["run"], asked["model"])
    if source.in_channels != 3:
        raise DovetailError(f"The model takes {source.in_channels} channels; labelled sets are read as 3 (RGB).")
    where = machine(asked["accelerator"], asked["precision"], asked["workers"])
    protocol = PROTOCOLS.get(data.format)
    fcn, tokens = kind_of(source, asked["decoder"])
    resnet = fcn and "resnet" in source.constructor
    stride = asked["output_stride"]
    if stride == "auto":
        stride = protocol.output_stride if protocol and resnet and can_dilate(source, asked["decoder"]) else 32
    passes = EPOCHS * len(data.train) // asked["batch_size"]
    steps = protocol.steps if protocol else min(max(passes, MIN_STEPS), MAX_STEPS)
    crop = asked["crop_size"] or (protocol.crop if protocol else OTHER_CROP)
    check_positive(asked, crop)
    options = options_of(
        asked, data, source, steps=steps, crop=crop, published=protocol if fcn else None, tokens=tokens
    )
    options = replace(options, precision=where.precision)
    window = window_of(asked["inference"], protocol, crop)
    return Plan(source, data, asked["decoder"], stride, options, asked["steps"] != "auto", window, where)


def options_of(
    asked: Mapping[str, Any],
    data: SegmentationData,
    source: Source,
    *,
    steps: int,
    crop: int,
    published: Protocol | None,
    tokens: bool,
) -> SegmentOptions:
    """Return how the model is fine-tuned: what was asked for, else as published, else by the rules of the module."""
    rates = (published.lr, published.weight_decay) if published else (1e-4 if tokens else 5e-4, 0.05)
    optimiser: Literal["adamw", "sgd"] = (
        ("sgd" if published else "adamw") if asked["optimiser"] == "auto" else asked["optimiser"]
    )
    drops = published.drops if published else ()
    scale = (0.5, 2.0) if data.format in PROTOCOLS else (0.75, 1.5)
    return SegmentOptions(
        classes=data.classes,
        steps=steps if asked["steps"] == "auto" else asked["steps"],
        batch_size=asked["batch_size"],
        optimiser=optimiser,
        lr=rates[0] if asked["lr"] == "auto" else asked["lr"],
        lr_scale={"encoder": asked["encoder_lr_scale"]} if asked["encoder_lr_scale"] != 1 else {},
        parts=PARTS,
        layer_decay=asked["layer_decay"],
        weight_decay=rates[1] if asked["weight_decay"] == "auto" else asked["weight_decay"],
        warmup_steps=asked["warmup_steps"],
        power=0.0 if drops else 0.9,
        drops=drops,
        batch_norm=asked["batch_norm"],
        augmentation=Augmentation(crop_px=(crop, crop), scale=scale),
        mean=three(source.mean),
        std=three(source.std),
        seed=asked["seed"],
    )


def check_positive(asked: Mapping[str, Any], crop: int) -> None:
    """Raise `DovetailError` for numbers out of range."""
    for name in ("batch_size", "seeds", "steps", "warmup_steps", "encoder_lr_scale"):
        low = 0 if name in ("warmup_steps", "encoder_lr_scale") else 1
        if asked[name] != "auto" and asked[name] < low:
            raise DovetailError(f"{name} is {asked[name]}; it must be at least {low}.")
    check_share("layer_decay", asked["layer_decay"])
    if crop < 32:
        raise DovetailError(f"crop_size is {crop}; it must be at least 32 px.")


def three(values: tuple[float, ...]) -> tuple[float, float, float]:
    """Return three numbers as such."""
    red, green, blue = values
    return red, green, blue


def kind_of(source: Source, decoder: str) -> tuple[bool, bool]:
    """Return whether the model is an FCN, and whether its encoder is a ViT."""
    with torch.device("meta"):
        model, _ = build_segmenter(source, classes=2, decoder=decoder)  # type: ignore[arg-type]
    fcn = isinstance(model, Unpacked) or (isinstance(model, Segmenter) and isinstance(model.body, EncoderFCN))
    inner = model.body if isinstance(model, Segmenter) else model
    children = dict(inner.named_children())
    encoder = children.get("encoder")
    return fcn, encoder is not None and type(encoder).__module__.startswith("timm.") and is_vit(encoder)


def can_dilate(source: Source, decoder: str) -> bool:
    """Whether an FCN's encoder has a ResNet's stages; torchvision's own is dilated already."""
    try:
        with torch.device("meta"):
            build_segmenter(source, classes=2, decoder=decoder, output_stride=16)  # type: ignore[arg-type]
    except DovetailError:
        return False
    return not source.constructor.startswith("torchvision.")


def window_of(inference: str, protocol: Protocol | None, crop: int) -> Window | None:
    """Return the window of sliding inference; None for whole images."""
    if inference == "whole":
        return None
    if inference == "slide":
        return Window(crop, max(crop * 2 // 3, 1))
    return protocol.window if protocol else None


def task_of(plan: Plan) -> Task:
    """Return what is needed to use the model later."""
    window = None if plan.window is None else [plan.window.size_px, plan.window.stride_px]
    options = {"decoder": plan.decoder, "output_stride": plan.output_stride, "window": window}
    return Task.of("segment", plan.source, plan.data.names, options)
