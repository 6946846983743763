"""Implements `dovetail finetune segment`.

The protocols of VOC, Cityscapes and ADE20K for FCNs, and of ADE20K for ViTs, are in `protocols`. Other models are
trained with AdamW (learning rate 1e-4 for ViTs and 5e-4 for others, weight decay 0.05, polynomial decay) for as many
steps as the dataset's FCN. On other datasets, training takes 40 epochs (500 to 20,000 steps) with crops of 256 px. All
values are for the whole training set.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import nn

from dovetail.downstream.examples import Example, segmented
from dovetail.downstream.finished import Task
from dovetail.downstream.fit import OnStep
from dovetail.downstream.job import FinetunePlan, evenly, run_plan
from dovetail.downstream.labels.labelled import InMemory
from dovetail.downstream.labels.mask_sets import SegmentationSet, check_told_apart
from dovetail.downstream.labels.readers import SegmentationData, open_segmentation
from dovetail.downstream.machine import Machine, machine
from dovetail.downstream.options import FinetuneSegmentOptions
from dovetail.downstream.own import prefixes_of
from dovetail.downstream.progress import progress
from dovetail.downstream.segment.augment import Augmentation
from dovetail.downstream.segment.colours import MOST_COLOURS
from dovetail.downstream.segment.loop import confusion_matrix, finetune_segmentation, predict
from dovetail.downstream.segment.model import PARTS, FCNSpec, HeadName, Segmenter, Unpacked, ViTMaps, build_segmenter
from dovetail.downstream.segment.options import SegmentOptions, Window
from dovetail.downstream.segment.protocols import PROTOCOLS, Protocol, Training
from dovetail.downstream.start import Source, chosen_starts, source_of
from dovetail.downstream.table.ledger import Fitted
from dovetail.downstream.table.results import Results, fingerprint, one_value
from dovetail.downstream.table.trials import Trial
from dovetail.errors import DovetailError, OptionsError
from dovetail.networks.decoders import EncoderFCN
from dovetail.networks.vit import is_vit
from dovetail.networks.vit_fpn import ViTFPN
from dovetail.sizes import Size, as_size, sides, size_in_words

MEMORY_BYTES = 2**30  # datasets up to this size are kept in memory
MIN_STEPS, MAX_STEPS, EPOCHS, OTHER_CROP = 500, 20_000, 40, 256


@dataclass(frozen=True)
class Plan(FinetunePlan):
    """A fine-tuning for segmentation.

    Attributes:
        source: Source of the model.
        data: Labelled dataset.
        decoder: Decoder for an encoder without one.
        fcn: Specification of an FCN.
        output_stride: Output stride of an FCN's ResNet.
        options: Fine-tuning options. `steps` is for the whole dataset.
        fixed_steps: Whether `steps` was specified, and so applies to every fraction.
        fixed_warmup: Whether warm-up steps were specified. Otherwise they are at most a quarter of the steps.
        window: Window of sliding inference, or None for whole images.
        where: Device, precision and number of threads.
        train, val: Training and validation images, which may be in memory.
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
    train: SegmentationSet | InMemory
    val: SegmentationSet | InMemory

    def model(self) -> tuple[nn.Module, nn.Module]:
        return build_segmenter(
            self.source,
            classes=self.data.classes,
            decoder=self.decoder,
            output_stride=self.output_stride,
            fcn=self.fcn,
        )

    def options_for(self, trial: Trial) -> SegmentOptions:
        """Return the options of a trial. Its steps are scaled by its fraction of the images (at least 500 steps)."""
        steps, warmup = self.options.steps, self.options.warmup_steps
        if not self.fixed_steps:
            steps = max(round(steps * len(trial.indices) / len(self.data.train)), MIN_STEPS)
        if not self.fixed_warmup:
            warmup = min(warmup, steps // 4)
        return replace(self.options, steps=steps, warmup_steps=warmup, seed=trial.seed)

    def learn(self, model: nn.Module, trial: Trial, on_step: OnStep) -> None:
        images, where = self.train.subset(list(trial.indices)), self.where
        options = self.options_for(trial)
        finetune_segmentation(model, images, options, device=where.device, threads=where.threads, on_step=on_step)

    def measure(self, model: nn.Module, on_batch: Callable[[int], None]) -> Fitted:
        """Return the scores of a fine-tuned model, and the IoU of each class."""
        where = self.where
        matrix = confusion_matrix(
            model,
            self.val,
            self.options,
            window=self.window,
            device=where.device,
            threads=where.threads,
            on_batch=on_batch,
        )
        scores = matrix.scores()
        values = {"mIoU": scores.miou, "aAcc": scores.accuracy, "mAcc": scores.mean_accuracy}
        bounds = dict(zip(values, matrix.intervals(), strict=True))
        iou = {name: share if share == share else None for name, share in zip(self.data.names, scores.iou, strict=True)}
        found = {name: one_value(value, bounds[name]) for name, value in values.items()}
        return Fitted(found, {"iou_per_class": iou}, matrix.moves())

    def glancing(self, most: int) -> Plan:
        return replace(self, val=self.val.subset(evenly(len(self.val), most)))

    def examples(self, model: nn.Module) -> list[Example]:
        if self.data.classes > MOST_COLOURS:
            return []
        found = []
        for index in range(len(self.val)):
            item = self.val[index]
            classes = predict(model, item.image[None], self.options, window=self.window, device=self.where.device)[0]
            found.append(segmented(item.image, item.mask, classes, caption="image, mask, prediction"))
        return found

    def classes(self) -> list[list[int]]:
        data, found = self.data.train, []
        with progress("reading classes", len(data)) as advance:
            for index in range(len(data)):
                found.append(data.classes_in(index))
                advance(1)
        return found

    def facts(self) -> dict[str, Any]:
        return {
            "format": self.data.format,
            "fingerprint": fingerprint(
                [*self.data.train.files(), *self.data.val.files()],
                [*self.data.train.content(), *self.data.val.content()],
            ),
            "train_images": len(self.data.train),
            "test_images": len(self.data.val),
            "classes": self.data.classes,
        }

    def pixels_in_words(self) -> str:
        crop = self.options.augmentation.crop_px
        return "whole images" if crop is None else f"crops of {size_in_words(as_size(crop))} px"

    def task(self) -> Task:
        options = {
            "decoder": self.decoder,
            "output_stride": self.output_stride,
            "fcn": asdict(self.fcn),
            "window": None if self.window is None else [self.window.size_px, self.window.stride_px],
            "within_px": self.options.augmentation.within_px,
            "align_corners": self.options.align_corners,
        }
        return Task.of("segment", self.source, self.data.names, options)


def finetune_segment(asked: FinetuneSegmentOptions, *, ending: bool = True) -> Results:
    """Fine-tune and evaluate. With `ending`, print what can be done next."""
    plan = plan_of(
        asked,
        open_segmentation(
            asked.data, classes=asked.classes, ignore_index=asked.ignore_index, label_map=list(asked.label_map)
        ),
    )
    data = plan.data
    with torch.device("meta"):
        starts = chosen_starts(asked.start, plan.source, target=plan.model()[1])
    plan = replace(plan, train=in_memory(data.train), val=in_memory(data.val))
    check_told_apart(data.train, plan.train, "training", least=2)
    check_told_apart(data.val, plan.val, "evaluation", least=1)
    meaning = [data.label_map] if data.label_map is not None else []  # a table's content, too
    notes = [data.note] * bool(data.note)
    return run_plan("finetune segment", asked, plan, starts, notes=notes, marks=meaning, ending=ending)


def in_memory(data: SegmentationSet) -> SegmentationSet | InMemory:
    """Read a small dataset into memory. Large datasets are returned unchanged."""
    first = data[0]
    size = first.image.nbytes + first.mask.nbytes
    if size * len(data) > MEMORY_BYTES:
        return data
    items = [first]
    with progress("reading", len(data)) as advance:
        advance(1)
        for index in range(1, len(data)):
            items.append(data[index])
            advance(1)
    return InMemory(items)


def plan_of(asked: FinetuneSegmentOptions, data: SegmentationData) -> Plan:
    """Return the plan with all "auto" values resolved by the protocol of the dataset or the defaults of this module."""
    source = source_of(asked.run, asked.model, encoder=asked.encoder)
    data = data.with_channels(source.in_channels)
    where = machine(asked.accelerator, asked.precision, asked.workers)
    protocol = PROTOCOLS.get(data.format, Protocol())
    head, tokens = kind_of(source, asked.decoder)
    own_fcn = head == "fcn" and not source.constructor.startswith("torchvision.")
    stride, weight = asked.output_stride, asked.auxiliary_weight
    if stride == "auto":
        stride = protocol.output_stride if own_fcn and can_dilate(source, asked.decoder) else 32
    elif stride != 32 and not own_fcn:
        raise OptionsError(f"{source.constructor} does not support --output-stride; omit it.")
    if weight not in ("auto", 0) and not own_fcn:
        raise OptionsError(f"{source.constructor} has no auxiliary head; omit --auxiliary-weight.")
    if source.in_channels != 3 and (asked.distort == "on" or (asked.distort == "auto" and protocol.distort)):
        raise OptionsError(
            f"--distort changes RGB colours, but the model takes {source.in_channels} channels; use --distort off."
        )
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
        data.train,
        data.val,
    )


def training_of(asked: FinetuneSegmentOptions, data: SegmentationData, protocol: Protocol, *, tokens: bool) -> Training:
    """Return the default training of a model without a protocol (see the module's docstring)."""
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
    crop: Size,
) -> SegmentOptions:
    """Return the fine-tuning options: specified values override those of `training`."""

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
        parts=PARTS if source.own is None else prefixes_of(source.network("random")),
        layer_decay=chosen("layer_decay", training.layer_decay),
        weight_decay=chosen("weight_decay", training.weight_decay),
        decay_vectors=training.decay_vectors,
        warmup_steps=chosen("warmup_steps", training.warmup_steps),
        power=training.power,
        floor=training.floor,
        drops=training.drops,
        batch_norm=asked.batch_norm,
        augmentation=Augmentation(
            crop_px=sides(crop),
            scale=protocol.scale,
            within_px=protocol.within_px,
            most_of_one_class=protocol.most_of_one_class,
            distort=protocol.distort if asked.distort == "auto" else asked.distort == "on",
        ),
        auxiliary_weight=chosen("auxiliary_weight", 0.4),
        ignore_index=data.train.ignore_index,
        mean=source.mean,
        std=source.std,
        seed=asked.seed,
    )


def kind_of(source: Source, decoder: str) -> tuple[HeadName, bool]:
    """Return the kind of the model's head, and whether its encoder is a ViT."""
    with torch.device("meta"):
        model, _ = build_segmenter(source, classes=2, decoder=decoder)  # type: ignore[arg-type]
    body = model.body if isinstance(model, Segmenter) else model
    encoder = dict(body.named_children()).get("encoder")
    tokens = encoder is not None and type(encoder).__module__.startswith("timm.") and is_vit(encoder)
    if isinstance(body, (EncoderFCN, Unpacked)):
        return "fcn", tokens
    return ("vit-fpn" if isinstance(body, ViTFPN) else "upernet" if isinstance(body, ViTMaps) else "other"), tokens


def can_dilate(source: Source, decoder: str) -> bool:
    """Return whether an FCN's encoder has ResNet stages that can be dilated. torchvision's FCN is dilated already."""
    try:
        with torch.device("meta"):
            build_segmenter(source, classes=2, decoder=decoder, output_stride=16)  # type: ignore[arg-type]
    except DovetailError:
        return False
    return not source.constructor.startswith("torchvision.")


def window_of(inference: str, published: Window | None, crop: Size) -> Window | None:
    """Return the window of sliding inference, or None for whole images."""
    if inference == "whole":
        return None
    if inference == "slide":
        high, wide = (side * 2 // 3 for side in sides(crop))
        return Window(crop, as_size((high, wide)))
    return published
