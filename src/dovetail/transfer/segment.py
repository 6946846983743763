"""Fine-tuning for semantic segmentation, and its evaluation: any module that gives [B, K, h, w] logits.

Polynomial decay `lr (1 - step / steps)^0.9` and random scale, crop and flip, as the field's protocols have them; the
size of each, and one learning rate for each part of the model, are options. What step k sees is a pure function of
(seed, k): nothing is drawn from global random state but what the model itself draws (dropout).

Shapes: B images, C channels, K classes, H x W pixels, h x w cells of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dovetail.errors import DovetailError
from dovetail.transfer.augment import Augmentation, augmented
from dovetail.transfer.labelled import Labelled, LabelledSet
from dovetail.transfer.layer_decay import layer_scales
from dovetail.transfer.machine import ahead
from dovetail.transfer.metrics import IGNORE_INDEX, ConfusionMatrix, SegmentationScores
from dovetail.views.plan import IMAGENET_MEAN, IMAGENET_STD

SMP_PARTS: Mapping[str, tuple[str, ...]] = {
    "encoder": ("encoder.",),
    "decoder": ("decoder.",),
    "head": ("segmentation_head.",),
}


@dataclass(frozen=True)
class SegmentOptions:
    """How a model is fine-tuned.

    Attributes:
        classes: K; labels are 0 .. K - 1.
        steps: Optimiser steps.
        batch_size: Images in a step.
        optimiser: "adamw" or "sgd" (momentum 0.9).
        lr: Peak learning rate of the parts whose scale is 1.
        lr_scale: Factor on `lr` for a part; parts that are not named have 1, a factor of 0 freezes the part.
        parts: Prefixes of each part's parameters; parameters of no part count as "rest".
        layer_decay: Factor from the rate of an encoder's layer to that of the layer before it.
        weight_decay: Of tensors with more than one dimension.
        warmup_steps: Steps of linear warm-up.
        power: Of the polynomial decay; 0 keeps the rate.
        drops: Shares of the steps after which the rate is a tenth of what it was.
        batch_norm: BatchNorm's running statistics: "train" goes on from those there, "reestimate" first replaces them
            by the mean over the training images, "frozen" keeps them fixed and normalises by them in training too.
        augmentation: What training images go through.
        ignore_index: The label of pixels that do not count.
        precision: "bf16" for autocast, "float32", or "auto": bf16 where the hardware multiplies it natively.
        mean, std: Of each channel in [0, 1], for normalisation.
        seed: Of order and augmentation.
    """

    classes: int
    steps: int = 1000
    batch_size: int = 16
    optimiser: Literal["adamw", "sgd"] = "adamw"
    lr: float = 1e-3
    lr_scale: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(SMP_PARTS))
    layer_decay: float = 1.0
    weight_decay: float = 1e-4
    warmup_steps: int = 0
    power: float = 0.9
    drops: tuple[float, ...] = ()
    batch_norm: Literal["train", "reestimate", "frozen"] = "train"
    augmentation: Augmentation = field(default_factory=Augmentation)
    ignore_index: int = IGNORE_INDEX
    precision: Literal["auto", "bf16", "float32"] = "auto"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    seed: int = 0


@dataclass(frozen=True)
class Window:
    """Sliding inference: windows of `size_px` every `stride_px`, their logits averaged where they overlap."""

    size_px: int
    stride_px: int


def finetune_segmentation(
    model: nn.Module,
    train: LabelledSet,
    options: SegmentOptions,
    *,
    device: torch.device | str = "cpu",
    on_step: Callable[[int, float], None] | None = None,
    threads: int = 0,
) -> list[float]:
    """Fine-tune `model` in place on `train` and return the loss of every step.

    Args:
        model: [B, 3, H, W] -> [B, K, h, w] logits, which are resized to the mask where they are smaller.
        train: Images with masks.
        options: See `SegmentOptions`.
        device: Where to compute.
        on_step: Called after every step with its number, from 0, and its loss.
        threads: Threads that prepare batches ahead of their use; the result does not depend on them.

    Raises:
        DovetailError: For an empty set, labels beyond K, a model with another number of classes, or a part's learning
            rate whose prefixes match no parameter.
    """
    if len(train) == 0:
        raise DovetailError("The training set is empty; give at least one image with its mask.")
    placed(model, device)
    optimiser = build_optimiser(model, options)
    if options.batch_norm == "reestimate":
        reestimate_batch_norm(model, train, options, device=device)
    model.train()
    if options.batch_norm == "frozen":
        freeze_batch_norm(model)
    losses: list[float] = []
    batches = ahead(lambda step: training_batch(train, options, step), range(options.steps), threads=threads)
    for step, (images, masks) in enumerate(batches):
        set_rate(optimiser, rate_share(options, step))
        with autocast(options, device):
            logits = resized(model(normalised(images.to(device), options)), masks.shape[1:])
        check_classes(logits, options.classes)
        loss = F.cross_entropy(logits.float(), masks.to(device), ignore_index=options.ignore_index)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()
        losses.append(loss.item())
        if on_step is not None:
            on_step(step, losses[-1])
    return losses


def evaluate_segmentation(
    model: nn.Module,
    data: LabelledSet,
    options: SegmentOptions,
    *,
    window: Window | None = None,
    device: torch.device | str = "cpu",
    threads: int = 0,
) -> SegmentationScores:
    """Return the scores of `model` on `data`; see `confusion_matrix`."""
    return confusion_matrix(model, data, options, window=window, device=device, threads=threads).scores()


@torch.no_grad()
def confusion_matrix(
    model: nn.Module,
    data: LabelledSet,
    options: SegmentOptions,
    *,
    window: Window | None = None,
    device: torch.device | str = "cpu",
    threads: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> ConfusionMatrix:
    """Return what `model` takes each pixel of `data` for, at the size of the masks.

    Args:
        model: [B, 3, H, W] -> [B, K, h, w] logits.
        data: Images with masks.
        options: As in fine-tuning; what concerns training is not used, but `batch_size` is.
        window: Sliding inference; None looks at whole images.
        device: Where to compute.
        threads: Threads that read images ahead of their use.
        on_batch: Called after every batch with the number of its images.
    """
    placed(model, device).eval()
    matrix = ConfusionMatrix(options.classes, ignore_index=options.ignore_index)
    for items in batches_of_one_size(data, options.batch_size, threads=threads):
        images = torch.stack([item.image for item in items])
        prediction = predict(model, images, options, window=window, device=device)
        for found, item in zip(prediction, items, strict=True):
            matrix.add(found, item.mask)
        if on_batch is not None:
            on_batch(len(items))
    return matrix


@torch.no_grad()
def predict(
    model: nn.Module,
    images: Tensor,
    options: SegmentOptions,
    *,
    window: Window | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Return the classes [B, H, W] of uint8 `images` [B, 3, H, W]; the model must be in evaluation mode."""
    pixels = normalised(images.to(device), options)
    with autocast(options, device):
        if window is None:
            logits = resized(model(pixels).float(), pixels.shape[2:])
        else:
            logits = sliding_logits(model, pixels, window)
    check_classes(logits, options.classes)
    return logits.argmax(1).cpu()


def placed(model: nn.Module, device: torch.device | str) -> nn.Module:
    """Return `model`, moved to `device`, convolutions' weights with channels last in memory."""
    return model.to(device).to(memory_format=torch.channels_last)


def sliding_logits(model: nn.Module, pixels: Tensor, window: Window) -> Tensor:
    """Return [B, K, H, W]: logits averaged over windows; the last ones are moved inwards to end at the border."""
    height, width = pixels.shape[2:]
    size = (min(window.size_px, height), min(window.size_px, width))
    total: Tensor | None = None
    count = pixels.new_zeros(1, 1, height, width)
    for top in starts(height, size[0], window.stride_px):
        for left in starts(width, size[1], window.stride_px):
            place = (..., slice(top, top + size[0]), slice(left, left + size[1]))
            logits = resized(model(pixels[place]).float(), size)
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], height, width)
            total[place] += logits
            count[place] += 1
    assert total is not None  # there is at least one window
    return total / count


def starts(length: int, size: int, stride: int) -> list[int]:
    """Return where windows begin along a side so that all of it is covered."""
    return [min(start, length - size) for start in range(0, max(length - size + stride, 1), stride)]


def part_of(name: str, parts: Mapping[str, Sequence[str]]) -> str:
    """Return the part that a parameter belongs to, "rest" for none."""
    return next((part for part, prefixes in parts.items() if name.startswith(tuple(prefixes))), "rest")


def build_optimiser(model: nn.Module, options: SegmentOptions) -> torch.optim.Optimizer:
    """Return the optimiser, with one group for each learning rate and weight decay."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[str] = set()
    names, encoder = [name for name, _ in model.named_parameters()], options.parts.get("encoder", ())
    by_layer = layer_scales(names, encoder=encoder, decay=options.layer_decay)
    for name, parameter in model.named_parameters():
        part = part_of(name, options.parts)
        seen.add(part)
        scale = options.lr_scale.get(part, 1.0) * by_layer[name]
        parameter.requires_grad_(scale > 0)
        if scale > 0:
            decay = options.weight_decay if parameter.dim() > 1 else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    missing = sorted(set(options.lr_scale) - seen)
    if missing:
        raise DovetailError(
            f"A learning rate was given for part {missing[0]!r}, but no parameter belongs to it; the model's parts "
            f"are {', '.join(sorted(seen))}."
        )
    described = [
        {"params": parameters, "lr": options.lr * scale, "peak_lr": options.lr * scale, "weight_decay": decay}
        for (scale, decay), parameters in groups.items()
    ]
    if options.optimiser == "sgd":
        return torch.optim.SGD(described, momentum=0.9)
    return torch.optim.AdamW(described)


def rate_share(options: SegmentOptions, step: int) -> float:
    """Return the share of its peak that a learning rate has at `step`."""
    warmup = min((step + 1) / (options.warmup_steps + 1), 1.0)
    dropped = 0.1 ** sum(step >= drop * options.steps for drop in options.drops)
    return float(warmup * dropped * (1 - step / options.steps) ** options.power)


def set_rate(optimiser: torch.optim.Optimizer, share: float) -> None:
    """Set every group's learning rate to `share` of its peak."""
    for group in optimiser.param_groups:
        group["lr"] = group["peak_lr"] * share


def training_batch(data: LabelledSet, options: SegmentOptions, step: int) -> tuple[Tensor, Tensor]:
    """Return the augmented images [B, 3, H, W] uint8 and masks [B, H, W] of a step, a pure function of (seed, step).

    The set is gone through in a new order in every round; a small set is used several times in one batch.
    """
    size = options.batch_size
    items = []
    for place in range(step * size, (step + 1) * size):
        turn, offset = divmod(place, len(data))
        order = np.random.default_rng((options.seed, 0, turn)).permutation(len(data))
        rng = np.random.default_rng((options.seed, 1, place))
        items.append(augmented(data[int(order[offset])], options.augmentation, options.ignore_index, rng))
    images, masks = torch.stack([item.image for item in items]), torch.stack([item.mask for item in items])
    wrong = masks[(masks != options.ignore_index) & ((masks < 0) | (masks >= options.classes))]
    if wrong.numel():
        raise DovetailError(
            f"A mask holds label {int(wrong.max())}, but there are {options.classes} classes "
            f"(0 to {options.classes - 1}); give the right number of classes."
        )
    return images, masks


def batches_of_one_size(data: LabelledSet, batch_size: int, *, threads: int = 0) -> Iterator[list[Labelled]]:
    """Yield the items in order, in batches whose images have one size; few are in memory at once."""
    batch: list[Labelled] = []
    for item in ahead(data.__getitem__, range(len(data)), threads=threads):
        if batch and (len(batch) == batch_size or batch[0].mask.shape != item.mask.shape):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def normalised(images: Tensor, options: SegmentOptions) -> Tensor:
    """Return uint8 [B, 3, H, W] as float32, each channel by its mean and deviation, channels last in memory."""
    mean = torch.tensor(options.mean, device=images.device).view(3, 1, 1)
    std = torch.tensor(options.std, device=images.device).view(3, 1, 1)
    return ((images.float() / 255 - mean) / std).contiguous(memory_format=torch.channels_last)


def resized(logits: Tensor, size: Sequence[int]) -> Tensor:
    """Return logits [B, K, h, w] at `size` (height, width)."""
    if tuple(logits.shape[2:]) == tuple(size):
        return logits
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=False)


def check_classes(logits: Tensor, classes: int) -> None:
    """Raise `DovetailError` for a model with another number of classes."""
    if logits.shape[1] != classes:
        raise DovetailError(
            f"The model gives {logits.shape[1]} classes, but the data has {classes}; build the model with "
            f"classes={classes}."
        )


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the model's BatchNorm modules that keep running statistics."""
    modules = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return [module for module in modules if module.track_running_stats]


def freeze_batch_norm(model: nn.Module) -> None:
    """Put BatchNorm into evaluation mode: it normalises by its running statistics and keeps them."""
    for module in batch_norms(model):
        module.eval()


@torch.no_grad()
def reestimate_batch_norm(
    model: nn.Module, data: LabelledSet, options: SegmentOptions, *, device: torch.device | str = "cpu", steps: int = 8
) -> None:
    """Replace BatchNorm's running statistics by their plain mean over `steps` training batches."""
    norms = batch_norms(model)
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # a plain mean over batches
    model.train()
    for step in range(steps):
        images, _ = training_batch(data, options, step)
        with autocast(options, device):
            model(normalised(images.to(device), options))
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum


def autocast(options: SegmentOptions, device: torch.device | str) -> AbstractContextManager[None]:
    """Return the context of the chosen precision."""
    kind = torch.device(device).type
    if options.precision == "bf16" or (options.precision == "auto" and has_native_bf16(kind)):
        return torch.autocast(kind, dtype=torch.bfloat16)
    return nullcontext()


def has_native_bf16(device_type: str) -> bool:
    """Whether a kind of device multiplies bfloat16 natively."""
    if device_type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device_type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
