"""Options of `dovetail finetune`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dovetail.downstream.options import RATE, FinetuneOptions, MachineOptions
from dovetail.options import COUNT, MOST_SIDE_PX, NOT_NEGATIVE, SHARE, Auto, Range, option


@dataclass(frozen=True, kw_only=True)
class FinetuneSegmentOptions(MachineOptions, FinetuneOptions):
    """Options of `dovetail finetune segment`."""

    data: str | Path = option(
        "",
        "Folder of VOC 2012, ADE20K, Cityscapes, COCO, a saved Hugging Face dataset, or of images/ beside "
        "masks/; or a COCO JSON file.",
    )
    out: str | Path = option("", "Folder for results.json and the model; RUN/finetune-segment unless given.")
    decoder: Literal["auto", "fcn", "fpn", "upernet"] = option(
        "auto",
        "Decoder for an encoder without one: fcn for a CNN, fpn (Semantic FPN) for both, upernet for a ViT.",
    )
    classes: int | None = option(
        None,
        "Number of classes of images beside masks; counted from the masks unless given.",
        COUNT,
    )
    ignore_index: int = option(
        255,
        "Label of pixels that do not count, of images beside masks and saved datasets; -1 for none.",
        Range(-1, 65_535),
    )
    label_map: Sequence[str] = option(
        (),
        "What the labels or colours of images beside masks mean: pairs such as 255:1, 128:ignore or "
        "128,0,0:2, or one table of names and colours (labelmap.txt, class_dict.csv).",
    )
    steps: int | Auto = option(
        "auto",
        'Optimiser steps; "auto" takes the protocol\'s, in proportion for a fraction of the images.',
        COUNT,
    )
    batch_size: int = option(16, "Images in a step.", Range(1, most=1 << 20))
    optimiser: Literal["auto", "adamw", "sgd"] = option("auto", 'Optimiser; "auto" takes the protocol\'s.')
    lr: float | Auto = option("auto", 'Peak learning rate; "auto" takes the protocol\'s.', RATE)
    encoder_lr_scale: float = option(1.0, "Factor on the encoder's learning rate; 0 freezes it.", NOT_NEGATIVE)
    layer_decay: float | Auto = option(
        "auto",
        'Factor from the learning rate of the encoder\'s block to that of the block before it; "auto" takes '
        "the protocol's: 0.9 for UPerNet on ADE20K, else 1.",
        SHARE,
    )
    weight_decay: float | Auto = option(
        "auto",
        'Weight decay of tensors with more than one dimension; "auto" takes the protocol\'s.',
        NOT_NEGATIVE,
    )
    warmup_steps: int | Auto = option(
        "auto",
        'Steps of linear warm-up; "auto" takes the protocol\'s, at most a quarter of all.',
        NOT_NEGATIVE,
    )
    crop_size: int | None = option(
        None,
        "Side of training crops in pixels; the protocol's unless given.",
        Range(32, most=MOST_SIDE_PX),
    )
    output_stride: Literal["auto", 8, 16, 32] = option(
        "auto",
        'Stride of the deepest map of a ResNet under an FCN; "auto" takes the protocol\'s.',
    )
    auxiliary_weight: float | Auto = option(
        "auto",
        'Weight of the loss of an FCN\'s second head, which is left out after training; 0 has none, "auto" '
        "takes the protocol's: 0.4 on ADE20K, else none.",
        NOT_NEGATIVE,
    )
    distort: Literal["auto", "on", "off"] = option(
        "auto",
        'Random brightness, contrast, saturation and hue in training; "auto" turns it on for ADE20K.',
    )
    batch_norm: Literal["train", "reestimate", "frozen"] = option(
        "train",
        '"train" goes on from the run\'s statistics, "reestimate" from new ones, "frozen" keeps them.',
    )
    inference: Literal["auto", "whole", "slide"] = option(
        "auto",
        "Whole images, or windows of the crop's size every two thirds of it; \"auto\" takes the protocol's.",
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneDetectOptions(MachineOptions, FinetuneOptions):
    """Options of `dovetail finetune detect`."""

    data: str | Path = option(
        "",
        "COCO's folder (annotations/instances_train*.json and instances_val*.json), or a COCO JSON file.",
    )
    out: str | Path = option("", "Folder for results.json and the model; RUN/finetune-detect unless given.")
    task: Literal["boxes", "masks"] = option("boxes", "Boxes, or masks as well.")
    head: Literal["rcnn", "retinanet"] = option("rcnn", "Faster and Mask R-CNN, or RetinaNet (boxes only).")
    box_head: Literal["auto", "2fc", "4conv1fc"] = option(
        "auto",
        'For R-CNN: two layers, or four convolutions and a layer as in the dense-SSL protocol; "auto" takes '
        "the model's own, else two layers.",
    )
    head_norm: Literal["none", "sync"] = option(
        "none",
        '"sync" puts BatchNorm over all boxes of a step after the convolutions of box and mask heads, as in '
        "the dense-SSL protocol.",
    )
    head_width: float = option(
        1.0,
        "For R-CNN: factor on the 1024 outputs of the box head's layers and the 256 channels of both heads' "
        "convolutions, from 1/16 to 4. Without a GPU the heads take most of the time.",
        Range(1 / 16, 4),
    )
    proposals: int = option(512, "For R-CNN: boxes of an image that the heads learn from.", COUNT)
    epochs: int = option(12, "Passes over the images; 12 is the 1x schedule.", COUNT)
    steps: int | None = option(None, "Optimiser steps, instead of epochs.", COUNT)
    batch_size: int = option(16, "Images in a step.", Range(1, most=1 << 20))
    lr: float | Auto = option(
        "auto",
        'Peak learning rate; "auto" is 0.02 for 16 images and in proportion for fewer, 1e-4 for ViTs.',
        RATE,
    )
    layer_decay: float = option(
        1.0,
        "Factor from the learning rate of the encoder's block to that of the block before it; iBOT's is 0.75 or 0.8.",
        SHARE,
    )
    image_size: int = option(
        800,
        "Largest shorter side in pixels; training draws from 80 to 100 % of it, the longer side has at most 5/3.",
        Range(16, most=MOST_SIDE_PX),
    )
    batch_norm: Literal["train", "frozen"] = option(
        "train",
        'For the backbone: "train", or "frozen" for steps of very few images.',
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneClassifyOptions(MachineOptions, FinetuneOptions):
    """Options of `dovetail finetune classify`."""

    data: str | Path = option(
        "",
        "Folder with train/CLASS/ and val/CLASS/ images, as ImageNet's, or a saved Hugging Face dataset.",
    )
    out: str | Path = option("", "Folder for results.json and the model; RUN/finetune-classify unless given.")
    epochs: int = option(100, "Passes over the images, of which a fraction takes as many; at least 100 steps.", COUNT)
    steps: int | None = option(None, "Optimiser steps, instead of epochs.", COUNT)
    batch_size: int = option(64, "Images in a step.", Range(1, most=1 << 20))
    lr: float = option(0.001, "Peak learning rate of the classifier.", RATE)
    layer_decay: float = option(
        0.75,
        "Factor from the learning rate of the encoder's block to that of the block before it; 1: off.",
        SHARE,
    )
    weight_decay: float = option(0.05, "Weight decay of tensors with more than one dimension.", NOT_NEGATIVE)
    mixup: float = option(0.0, "Parameter of mixup's Beta distribution; 0 turns it off, 0.8 is usual.", NOT_NEGATIVE)
    cutmix: float = option(
        0.0,
        "Parameter of CutMix's Beta distribution; 0 turns it off, 1 is usual; with mixup each batch has either.",
        NOT_NEGATIVE,
    )
    randaugment: int = option(0, "Magnitude of RandAugment, 1 to 10; 0 turns it off, 9 is usual.", Range(0, 10))
    random_erasing: float = option(
        0.0,
        "Share of images in which a rectangle is replaced by noise; 0.25 is usual.",
        Range(0, 1),
    )
    label_smoothing: float = option(0.1, "Share of the truth that is spread over all classes.", Range(0, 0.999))
    image_size: int | None = option(
        None,
        "Side of the images in pixels; the run's unless given.",
        Range(16, most=MOST_SIDE_PX),
    )
