"""`finetune segment`, `finetune classify` and `finetune detect`: what a run is worth after fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from dovetail.evaluating import measured

if TYPE_CHECKING:
    from dovetail.transfer.results import Results


def finetune_segment(
    *,
    run: str | Path | None = None,
    data: str | Path = "",
    out: str | Path = "",
    model: str | None = None,
    decoder: Literal["auto", "fcn", "fpn", "upernet"] = "auto",
    start: list[str] = ["auto"],  # noqa: B006 - read only
    fraction: list[float] = [1.0],  # noqa: B006 - read only
    seeds: int = 1,
    seed: int = 0,
    classes: int | None = None,
    ignore_index: int = 255,
    label_map: list[str] = [],  # noqa: B006 - read only
    steps: int | Literal["auto"] = "auto",
    batch_size: int = 16,
    optimiser: Literal["auto", "adamw", "sgd"] = "auto",
    lr: float | Literal["auto"] = "auto",
    encoder_lr_scale: float = 1.0,
    layer_decay: float | Literal["auto"] = "auto",
    weight_decay: float | Literal["auto"] = "auto",
    warmup_steps: int | Literal["auto"] = "auto",
    crop_size: int | None = None,
    output_stride: Literal["auto", 8, 16, 32] = "auto",
    auxiliary_weight: float | Literal["auto"] = "auto",
    distort: Literal["auto", "on", "off"] = "auto",
    batch_norm: Literal["train", "reestimate", "frozen"] = "train",
    inference: Literal["auto", "whole", "slide"] = "auto",
    value_range: list[float] = [],  # noqa: B006 - read only
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "bf16", "float32"] = "auto",
    workers: int | Literal["auto"] = "auto",
    check: bool = False,
) -> Results | None:
    """Fine-tune a run for semantic segmentation and measure mIoU, aAcc and mAcc.

    Args:
        run: Folder of a pre-training run.
        data: Folder of VOC 2012, ADE20K, Cityscapes, COCO, a saved Hugging Face dataset, or of images/ beside masks/;
            or a COCO JSON file.
        out: Folder for results.json and the model; RUN/finetune-segment unless given.
        model: Name of the model to fine-tune, where it is not the run's; without a run, for random weights.
        decoder: Of an encoder without one: fcn for a CNN, fpn (Semantic FPN) for both, upernet for a ViT.
        start: What to load of the run: random, encoder, decoder, all; several make several rows of the table. "auto"
            loads all that fits, without a run random weights.
        fraction: Shares of the labelled images to learn from, in nested, class-balanced subsets.
        seeds: Trials for each row, with seeds from `seed` on.
        seed: Of subsets, new weights, order and augmentation.
        classes: Number of classes of images beside masks; counted from the masks unless given.
        ignore_index: Label of pixels that do not count, of images beside masks and saved datasets; -1 for none.
        label_map: What the labels or colours of images beside masks mean: pairs such as 255:1, 128:ignore or 128,0,0:2,
            or one table of names and colours (labelmap.txt, class_dict.csv).
        steps: Optimiser steps; "auto" takes the protocol's, in proportion for a fraction of the images.
        batch_size: Images in a step.
        optimiser: Kind of optimiser; "auto" takes the protocol's.
        lr: Peak learning rate; "auto" takes the protocol's.
        encoder_lr_scale: Factor on the encoder's learning rate; 0 freezes it.
        layer_decay: Factor from the learning rate of the encoder's block to that of the block before it; "auto" takes
            the protocol's: 0.9 for UPerNet on ADE20K, else 1.
        weight_decay: Of tensors with more than one dimension; "auto" takes the protocol's.
        warmup_steps: Steps of linear warm-up; "auto" takes the protocol's, at most a quarter of all.
        crop_size: Side of training crops in pixels; the protocol's unless given.
        output_stride: Stride of the deepest map of a ResNet under an FCN; "auto" takes the protocol's.
        auxiliary_weight: Of the loss of an FCN's second head, which is left out after training; 0 has none, "auto"
            takes the protocol's: 0.4 on ADE20K, else none.
        distort: Random brightness, contrast, saturation and hue in training; "auto" turns it on for ADE20K.
        batch_norm: "train" goes on from the run's statistics, "reestimate" from new ones, "frozen" keeps them.
        inference: Whole images, or windows of the crop's size every two thirds of it; "auto" takes the protocol's.
        value_range: Black and white of images with more than 8 bits a channel; the run's unless given.
        accelerator: Kind of device.
        precision: Number format; "auto" takes bfloat16 autocast where the device computes it natively.
        workers: Threads that read images.
        check: Read the whole set, list all its faults, and stop.

    Returns:
        The results; None after a check without faults.

    Raises:
        DovetailError: For anything that was asked for and cannot be done, in one sentence.
    """
    asked = dict(locals())
    from dovetail.transfer.checking import check_segmentation
    from dovetail.transfer.segmenting import finetune_segment as job

    return measured("finetune-segment", asked, job, lambda: check_segmentation(data, classes, ignore_index, label_map))


def finetune_detect(
    *,
    run: str | Path | None = None,
    data: str | Path = "",
    out: str | Path = "",
    model: str | None = None,
    task: Literal["boxes", "masks"] = "boxes",
    head: Literal["rcnn", "retinanet"] = "rcnn",
    box_head: Literal["auto", "2fc", "4conv1fc"] = "auto",
    head_norm: Literal["none", "sync"] = "none",
    head_width: float = 1.0,
    proposals: int = 512,
    start: list[str] = ["auto"],  # noqa: B006 - read only
    fraction: list[float] = [1.0],  # noqa: B006 - read only
    seeds: int = 1,
    seed: int = 0,
    epochs: int = 12,
    steps: int | None = None,
    batch_size: int = 16,
    lr: float | Literal["auto"] = "auto",
    layer_decay: float = 1.0,
    image_size: int = 800,
    batch_norm: Literal["train", "frozen"] = "train",
    value_range: list[float] = [],  # noqa: B006 - read only
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "bf16", "float32"] = "auto",
    workers: int | Literal["auto"] = "auto",
    check: bool = False,
) -> Results | None:
    """Fine-tune a run for detection or instance segmentation and measure COCO's average precision.

    Args:
        run: Folder of a pre-training run.
        data: COCO's folder (annotations/instances_train*.json and instances_val*.json), or a COCO JSON file.
        out: Folder for results.json and the model; RUN/finetune-detect unless given.
        model: Name of the model to fine-tune, where it is not the run's; without a run, for random weights.
        task: Boxes, or masks as well.
        head: Faster and Mask R-CNN, or RetinaNet (boxes only).
        box_head: Of R-CNN: two layers, or four convolutions and a layer as in the dense-SSL protocol; "auto" takes the
            model's own, else two layers.
        head_norm: "sync" puts BatchNorm over all boxes of a step after the convolutions of box and mask heads, as in
            the dense-SSL protocol.
        head_width: Of R-CNN: factor on the 1024 outputs of the box head's layers and the 256 channels of both heads'
            convolutions, from 1/16 to 4. Without a GPU the heads take most of the time.
        proposals: Of R-CNN: boxes of an image that the heads learn from.
        start: What to load of the run: random, encoder, decoder, all; several make several rows of the table. "auto"
            loads all that fits, without a run random weights.
        fraction: Shares of the labelled images to learn from, in nested, class-balanced subsets.
        seeds: Trials for each row, with seeds from `seed` on.
        seed: Of subsets, new weights, order and flips.
        epochs: Passes over the images; 12 is the 1x schedule.
        steps: Optimiser steps, instead of epochs.
        batch_size: Images in a step.
        lr: Peak learning rate; "auto" is 0.02 for 16 images and in proportion for fewer, 1e-4 for ViTs.
        layer_decay: Factor from the learning rate of the encoder's block to that of the block before it; iBOT's is
            0.75 or 0.8.
        image_size: Largest shorter side in pixels; training draws from 80 to 100 % of it, the longer side has at most
            5/3.
        batch_norm: Of the backbone: "train", or "frozen" for steps of very few images.
        value_range: Black and white of images with more than 8 bits a channel; the run's unless given.
        accelerator: Kind of device.
        precision: Number format of the backbone; the heads compute in float32.
        workers: Threads that read images.
        check: Read the whole set, list all its faults, and stop.

    Returns:
        The results; None after a check without faults.

    Raises:
        DovetailError: For anything that was asked for and cannot be done, in one sentence.
    """
    asked = dict(locals())
    from dovetail.transfer.checking import check_detection
    from dovetail.transfer.detecting import finetune_detect as job

    return measured("finetune-detect", asked, job, lambda: check_detection(data, task))


def finetune_classify(
    *,
    run: str | Path | None = None,
    data: str | Path = "",
    out: str | Path = "",
    model: str | None = None,
    start: list[str] = ["auto"],  # noqa: B006 - read only
    fraction: list[float] = [1.0],  # noqa: B006 - read only
    seeds: int = 1,
    seed: int = 0,
    epochs: int = 100,
    steps: int | None = None,
    batch_size: int = 64,
    lr: float = 1e-3,
    layer_decay: float = 0.75,
    weight_decay: float = 0.05,
    mixup: float = 0.0,
    cutmix: float = 0.0,
    randaugment: int = 0,
    random_erasing: float = 0.0,
    label_smoothing: float = 0.1,
    image_size: int | None = None,
    value_range: list[float] = [],  # noqa: B006 - read only
    accelerator: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    precision: Literal["auto", "bf16", "float32"] = "auto",
    workers: int | Literal["auto"] = "auto",
    check: bool = False,
) -> Results | None:
    """Fine-tune a run's encoder for classification and measure top-1 (and top-5) accuracy.

    Args:
        run: Folder of a pre-training run.
        data: Folder with train/CLASS/ and val/CLASS/ images, as ImageNet's, or a saved Hugging Face dataset.
        out: Folder for results.json and the model; RUN/finetune-classify unless given.
        model: Name of the model to fine-tune, where it is not the run's; without a run, for random weights.
        start: What to load of the run: random, encoder, all; several make several rows of the table. "auto" loads all
            there is, without a run random weights.
        fraction: Shares of the labelled images to learn from, in nested, class-balanced subsets.
        seeds: Trials for each row, with seeds from `seed` on.
        seed: Of subsets, new weights, order, crops and mixing.
        epochs: Passes over the images, of which a fraction takes as many; at least 100 steps.
        steps: Optimiser steps, instead of epochs.
        batch_size: Images in a step.
        lr: Peak learning rate of the classifier.
        layer_decay: Factor from the learning rate of the encoder's block to that of the block before it; 1: off.
        weight_decay: Of tensors with more than one dimension.
        mixup: Parameter of mixup's Beta distribution; 0 turns it off, 0.8 is usual.
        cutmix: Parameter of CutMix's Beta distribution; 0 turns it off, 1 is usual; with mixup each batch has either.
        randaugment: Magnitude of RandAugment, 1 to 10; 0 turns it off, 9 is usual.
        random_erasing: Share of images in which a rectangle is replaced by noise; 0.25 is usual.
        label_smoothing: Share of the truth that is spread over all classes.
        image_size: Side of the images in pixels; the run's unless given.
        value_range: Black and white of images with more than 8 bits a channel; the run's unless given.
        accelerator: Kind of device.
        precision: Number format; "auto" takes bfloat16 autocast where the device computes it natively.
        workers: Threads that read images.
        check: Read the whole set, list all its faults, and stop.

    Returns:
        The results; None after a check without faults.

    Raises:
        DovetailError: For anything that was asked for and cannot be done, in one sentence.
    """
    asked = dict(locals())
    from dovetail.transfer.checking import check_images
    from dovetail.transfer.classifying import finetune_classify as job

    return measured("finetune-classify", asked, job, lambda: check_images(data))
