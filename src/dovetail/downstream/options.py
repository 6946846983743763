"""Options of `dovetail finetune` and `dovetail predict`, and those that `dovetail evaluate` shares with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dovetail.options import COUNT, MOST_SIDE_PX, NOT_NEGATIVE, SHARE, Auto, Options, Range, option
from dovetail.sizes import Size, as_size

STARTS = ("random", "imagenet", "encoder", "decoder", "all")
RATE = Range(0, above=True, most=1e6)
LABEL_MAP = (
    "Meaning of the values or colours in mask images: pairs such as 255:1, 128:ignore or 128,0,0:2, or one file of "
    "names and colours (labelmap.txt, class_dict.csv)."
)


@dataclass(frozen=True, kw_only=True)
class MachineOptions(Options):
    """Options for device, precision and threads."""

    accelerator: Literal["auto", "cpu", "cuda", "mps"] = option("auto", "Device type.")
    precision: Literal["auto", "bf16", "float32"] = option(
        "auto", 'Numerical precision. "auto" uses bfloat16 autocast where the hardware supports it.'
    )
    workers: int | Auto = option("auto", "Threads that read images.", Range(0, most=4096))


@dataclass(frozen=True, kw_only=True)
class MeasureOptions(Options):
    """Common options of all commands that evaluate a run on labelled images."""

    run: str | Path | None = option(
        None,
        "Run folder of a pre-training. With `model`, also a weight file of another program for the encoder.",
        existing=True,
    )
    data: Any = option("", "Labelled dataset.", existing=True)
    out: str | Path = option("", "Folder for results.json. Default: a folder in the run folder.")
    model: Any = option(
        None,
        "Model by name, with random weights, instead of a run; or, for a run of your own module, package.module:Class "
        "or (in Python) the module.",
    )
    encoder: str | None = option(
        None,
        "For your own module: dotted path of the encoder, or several comma-separated paths. Default: the run's.",
    )
    seed: int = option(0, "Seed of every random draw.", NOT_NEGATIVE)
    value_range: Sequence[float] = option(
        (), "Values of black and white in images with more than 8 bits per channel. Default: the run's."
    )
    check: bool = option(False, "Read the whole dataset, list all its faults, and exit.")


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions(MeasureOptions):
    """Common options of all fine-tuning commands."""

    model: Any = option(
        None,
        "Model to fine-tune, if it is not the run's. Without a run or file, it starts from random weights. For a run "
        "of your own module: package.module:Class or (in Python) the module.",
    )
    start: Sequence[str] = option(
        ("auto",),
        "Starts: random (random weights), imagenet (the library's weights of the encoder), encoder, decoder or all "
        "(that part of the run), a .safetensors file, or the folder of another run. Each start is a row of the table. "
        '"auto" loads all of the run that fits, or random weights without a run.',
    )
    fraction: Sequence[float] = option(
        (1.0,), "Fractions of the labelled training images to use, as nested, class-balanced subsets.", SHARE
    )
    seeds: int = option(
        1, "Number of trials for each row of the table, with the seeds `seed`, `seed` + 1 and so on.", COUNT
    )
    seed: int = option(0, "Seed of subsets, random weights, image order and augmentation.", NOT_NEGATIVE)


@dataclass(frozen=True, kw_only=True)
class FinetuneSegmentOptions(MachineOptions, FinetuneOptions):
    """Options of `dovetail finetune segment`."""

    data: Any = option(
        "",
        "Folder of VOC 2012, ADE20K, Cityscapes or COCO, a saved Hugging Face dataset, a folder with images/ and "
        "masks/, a COCO JSON file, or (in Python) a dataset of images and masks.",
        existing=True,
    )
    out: str | Path = option("", "Folder for results.json and the model. Default: RUN/finetune-segment.")
    decoder: Literal["auto", "fcn", "fpn", "upernet"] = option(
        "auto",
        "Decoder for an encoder without one: fcn for a CNN, fpn (Semantic FPN) for both, upernet for a ViT.",
    )
    classes: int | None = option(
        None,
        "Number of classes, for folders of images and masks. Default: counted from the masks.",
        COUNT,
    )
    ignore_index: int = option(
        255,
        "Label of pixels to ignore, for folders of images and masks and saved datasets; -1 for none.",
        Range(-1, 65_535),
    )
    label_map: Sequence[str] = option(
        (),
        LABEL_MAP,
    )
    steps: int | Auto = option(
        "auto",
        'Optimiser steps. "auto" uses the protocol\'s, scaled by the fraction of the images.',
        COUNT,
    )
    batch_size: int = option(16, "Images per step.", Range(1, most=1 << 20))
    optimiser: Literal["auto", "adamw", "sgd"] = option("auto", 'Optimiser. "auto" uses the protocol\'s.')
    lr: float | Auto = option("auto", 'Peak learning rate. "auto" uses the protocol\'s.', RATE)
    encoder_lr_scale: float = option(1.0, "Factor of the encoder's learning rate. 0 freezes the encoder.", NOT_NEGATIVE)
    layer_decay: float | Auto = option(
        "auto",
        'Layer-wise learning rate decay: factor from each encoder block to the block before it. "auto" uses the '
        "protocol's, which is 0.9 for UPerNet on ADE20K and 1 otherwise.",
        SHARE,
    )
    weight_decay: float | Auto = option(
        "auto",
        'Weight decay of tensors with more than one dimension. "auto" uses the protocol\'s.',
        NOT_NEGATIVE,
    )
    warmup_steps: int | Auto = option(
        "auto",
        'Steps of linear warm-up. "auto" uses the protocol\'s, and at most a quarter of all steps.',
        NOT_NEGATIVE,
    )
    crop_size: Size | None = option(
        None,
        "Side length of training crops in pixels, or height x width, such as 64x128. Default: the protocol's.",
        Range(32, most=MOST_SIDE_PX),
        reads=as_size,
    )
    output_stride: Literal["auto", 8, 16, 32] = option(
        "auto",
        'Stride of the deepest map of a ResNet with an FCN head. "auto" uses the protocol\'s.',
    )
    auxiliary_weight: float | Auto = option(
        "auto",
        "Weight of the auxiliary head's loss for an FCN. 0 disables it. \"auto\" uses the protocol's, which is 0.4 on "
        "ADE20K and 0 otherwise.",
        NOT_NEGATIVE,
    )
    distort: Literal["auto", "on", "off"] = option(
        "auto",
        'Random brightness, contrast, saturation and hue in training. "auto" enables it for ADE20K.',
    )
    batch_norm: Literal["train", "reestimate", "frozen"] = option(
        "train",
        'BatchNorm statistics: "train" updates those of the run, "reestimate" recomputes them first, "frozen" keeps '
        "those of the encoder and updates the others.",
    )
    inference: Literal["auto", "whole", "slide"] = option(
        "auto",
        'Whole images, or sliding windows of the crop size with a stride of two thirds. "auto" uses the protocol\'s.',
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneDetectOptions(MachineOptions, FinetuneOptions):
    """Options of `dovetail finetune detect`."""

    data: Any = option(
        "",
        "COCO folder (annotations/instances_train*.json and instances_val*.json), a COCO JSON file, or (in "
        "Python) a dataset of images and targets.",
        existing=True,
    )
    out: str | Path = option("", "Folder for results.json and the model. Default: RUN/finetune-detect.")
    task: Literal["boxes", "masks"] = option("boxes", "Train on boxes, or on boxes and masks.")
    head: Literal["rcnn", "retinanet"] = option("rcnn", "Faster and Mask R-CNN, or RetinaNet (boxes only).")
    box_head: Literal["auto", "2fc", "4conv1fc"] = option(
        "auto",
        'For R-CNN: two linear layers, or four convolutions and a linear layer as in the dense-SSL protocol. "auto" '
        "uses the model's own head if it has one, otherwise two layers.",
    )
    head_norm: Literal["none", "sync"] = option(
        "none",
        '"sync" adds synchronised BatchNorm after the convolutions of box and mask heads, as in the dense-SSL '
        "protocol.",
    )
    head_width: float = option(
        1.0,
        "For R-CNN: width factor of the heads, from 1/16 to 4. At 1, linear layers have 1024 outputs and convolutions "
        "256 channels. Without a GPU the heads take most of the time.",
        Range(1 / 16, 4),
    )
    proposals: int = option(512, "For R-CNN: proposals per image that the heads are trained on.", COUNT)
    epochs: int = option(12, "Epochs. 12 is the 1x schedule.", COUNT)
    steps: int | None = option(None, "Optimiser steps. Overrides epochs.", COUNT)
    batch_size: int = option(16, "Images per step.", Range(1, most=1 << 20))
    lr: float | Auto = option(
        "auto",
        'Peak learning rate. "auto" is 0.02 for 16 images per step, scaled linearly for fewer, and 1e-4 for ViTs.',
        RATE,
    )
    layer_decay: float = option(
        1.0,
        "Layer-wise learning rate decay: factor from each encoder block to the block before it. iBOT uses 0.75 or 0.8.",
        SHARE,
    )
    image_size: int = option(
        800,
        "Shorter side in pixels. Training draws 80 to 100 % of it; the longer side is at most 5/3 of it.",
        Range(16, most=MOST_SIDE_PX),
    )
    batch_norm: Literal["train", "frozen"] = option(
        "train",
        'BatchNorm of the backbone: "train", or "frozen" for very few images per step.',
    )


@dataclass(frozen=True, kw_only=True)
class FinetuneClassifyOptions(MachineOptions, FinetuneOptions):
    """Options of `dovetail finetune classify`."""

    data: Any = option(
        "",
        "Folder with train/CLASS/ and val/CLASS/ images as in ImageNet, a saved Hugging Face dataset, or (in Python) a "
        "dataset of images and classes.",
        existing=True,
    )
    out: str | Path = option("", "Folder for results.json and the model. Default: RUN/finetune-classify.")
    epochs: int = option(
        100, "Epochs over the images, or over a fraction of them. At least 100 steps are taken.", COUNT
    )
    steps: int | None = option(None, "Optimiser steps. Overrides epochs.", COUNT)
    batch_size: int = option(64, "Images per step.", Range(1, most=1 << 20))
    lr: float = option(0.001, "Peak learning rate of the classifier.", RATE)
    layer_decay: float = option(
        0.75,
        "Layer-wise learning rate decay: factor from each encoder block to the block before it. 1 disables it.",
        SHARE,
    )
    weight_decay: float = option(0.05, "Weight decay of tensors with more than one dimension.", NOT_NEGATIVE)
    mixup: float = option(0.0, "Parameter of mixup's Beta distribution. 0 disables it, 0.8 is common.", NOT_NEGATIVE)
    cutmix: float = option(
        0.0,
        "Parameter of CutMix's Beta distribution. 0 disables it, 1 is common. With mixup, each batch has one of them.",
        NOT_NEGATIVE,
    )
    randaugment: int = option(0, "Magnitude of RandAugment, 1 to 10. 0 disables it, 9 is common.", Range(0, 10))
    random_erasing: float = option(
        0.0,
        "Probability of replacing a rectangle of an image by noise. 0.25 is common.",
        Range(0, 1),
    )
    label_smoothing: float = option(0.1, "Label smoothing.", Range(0, 0.999))
    image_size: Size | None = option(
        None,
        "Side length of the images in pixels, or height x width, such as 64x128. Default: the run's.",
        Range(16, most=MOST_SIDE_PX),
        reads=as_size,
    )


@dataclass(frozen=True, kw_only=True)
class PredictOptions(MachineOptions):
    """Options of `dovetail predict`."""

    run: str | Path = option("", "Folder of a fine-tuned run.", existing=True)
    model: Any = option(None, "For a fine-tuned module of your own: package.module:Class or (in Python) the module.")
    data: str | Path = option("", "Folder of images (searched recursively), or a list of paths.", existing=True)
    out: str | Path = option("", "Output folder for the predictions.")
    overlays: bool = option(
        False,
        "Also write every image with its classes or boxes to OUT/overlays. For segmentation, OUT/legend.png has the "
        "colours of the classes; for detection, boxes have a score of 0.5 or more.",
    )
    min_score: float = option(0.05, "For detection: lowest score of detections to write.", Range(0, 1))
