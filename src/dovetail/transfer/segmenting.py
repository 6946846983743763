"""The job behind `dovetail finetune segment`.

Steps, rates and heads are for the whole training set; the protocols of VOC, Cityscapes and ADE20K are in `protocols`,
with those rates for FCNs. Other models are trained with AdamW, 1e-4 for ViTs and 5e-4 for others, weight decay 0.05,
polynomial decay. Other sets take 40 passes over the images (500 to 20,000 steps) in crops of 256 px.
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
from dovetail.transfer.protocols import PROTOCOLS, Protocol
from dovetail.transfer.readers import SegmentationData, open_segmentation
from dovetail.transfer.results import Results, fingerprint, one_value
from dovetail.transfer.segment import confusion_matrix, finetune_segmentation
from dovetail.transfer.segment_options import SegmentOptions, Window
from dovetail.transfer.segmenters import PARTS, FCNSpec, Segmenter, Unpacked, build_segmenter
from dovetail.transfer.start import Source, check_starts, source_of, weights_mark
from dovetail.transfer.subsets import balanced_order, check_share
from dovetail.transfer.trials import Grid, Trial, run_trials

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
    """Return the plan, with everything on "auto" filled in by the protocol of the set or the rules of the module."""
    source = source_of(asked["run"], asked["model"])
    if source.in_channels != 3:
        raise DovetailError(f"The model takes {source.in_channels} channels; labelled sets are read as 3 (RGB).")
    where = machine(asked["accelerator"], asked["precision"], asked["workers"])
    protocol = PROTOCOLS.get(data.format, Protocol())
    fcn, tokens = kind_of(source, asked["decoder"])
    own_fcn = fcn and not source.constructor.startswith("torchvision.")
    stride = asked["output_stride"]
    if stride == "auto":
        stride = protocol.output_stride if own_fcn and can_dilate(source, asked["decoder"]) else 32
    weight = asked["auxiliary_weight"]
    if weight not in ("auto", 0) and not own_fcn:
        raise DovetailError(f"{source.constructor} has no auxiliary head; leave --auxiliary-weight out.")
    passes = EPOCHS * len(data.train) // asked["batch_size"]
    steps = protocol.steps or min(max(passes, MIN_STEPS), MAX_STEPS)
    crop = asked["crop_size"] or protocol.crop or OTHER_CROP
    check_positive(asked, crop)
    published = protocol if fcn and protocol.lr is not None else None
    options = options_of(asked, data, source, protocol, steps=steps, crop=crop, published=published, tokens=tokens)
    spec = protocol.fcn if weight == "auto" else replace(protocol.fcn, auxiliary=weight > 0)
    window = window_of(asked["inference"], protocol, crop)
    options = replace(options, precision=where.precision)
    return Plan(source, data, asked["decoder"], spec, stride, options, asked["steps"] != "auto", window, where)


def options_of(
    asked: Mapping[str, Any],
    data: SegmentationData,
    source: Source,
    protocol: Protocol,
    *,
    steps: int,
    crop: int,
    published: Protocol | None,
    tokens: bool,
) -> SegmentOptions:
    """Return how the model is fine-tuned: what was asked for, else as published, else by the rules of the module."""
    optimiser: Literal["adamw", "sgd"] = "sgd" if published else "adamw"
    rate = published.lr if published and published.lr else 1e-4 if tokens else 5e-4
    decay = published.weight_decay if published else 0.05
    drops = published.drops if published else ()
    distort = protocol.distort if asked["distort"] == "auto" else asked["distort"] == "on"
    return SegmentOptions(
        classes=data.classes,
        steps=steps if asked["steps"] == "auto" else asked["steps"],
        batch_size=asked["batch_size"],
        optimiser=optimiser if asked["optimiser"] == "auto" else asked["optimiser"],
        lr=rate if asked["lr"] == "auto" else asked["lr"],
        lr_scale={"encoder": asked["encoder_lr_scale"]} if asked["encoder_lr_scale"] != 1 else {},
        parts=PARTS,
        layer_decay=asked["layer_decay"],
        weight_decay=decay if asked["weight_decay"] == "auto" else asked["weight_decay"],
        warmup_steps=asked["warmup_steps"],
        power=0.0 if drops else 0.9,
        floor=published.floor if published else 0.0,
        drops=drops,
        batch_norm=asked["batch_norm"],
        augmentation=Augmentation(
            crop_px=(crop, crop),
            scale=protocol.scale,
            within_px=protocol.within_px,
            most_of_one_class=protocol.most_of_one_class,
            distort=distort,
        ),
        auxiliary_weight=0.4 if asked["auxiliary_weight"] == "auto" else asked["auxiliary_weight"],
        align_corners=protocol.align_corners and published is not None,
        mean=three(source.mean),
        std=three(source.std),
        seed=asked["seed"],
    )


def check_positive(asked: Mapping[str, Any], crop: int) -> None:
    """Raise `DovetailError` for numbers out of range."""
    for name in ("batch_size", "seeds", "steps", "warmup_steps", "encoder_lr_scale", "auxiliary_weight"):
        low = 1 if name in ("batch_size", "seeds", "steps") else 0
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


def window_of(inference: str, protocol: Protocol, crop: int) -> Window | None:
    """Return the window of sliding inference; None for whole images."""
    if inference == "whole":
        return None
    if inference == "slide":
        return Window(crop, max(crop * 2 // 3, 1))
    return protocol.window


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
