"""Fine-tuning for semantic segmentation, and its evaluation: any module that gives [B, K, h, w] logits.

Polynomial decay `lr (1 - step / steps)^0.9` and random scale, crop and flip, as the field's protocols have them; the
size of each, and one learning rate for each part of the model, are options. What step k sees is a pure function of
(seed, k): nothing is drawn from global random state but what the model itself draws (dropout).

Shapes: B images, C channels, K classes, H x W pixels, h x w cells of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dovetail.downstream.fit import OnStep, fit
from dovetail.downstream.labels.labelled import Labelled, LabelledSet
from dovetail.downstream.labels.subsets import item_at
from dovetail.downstream.machine import Machine, ahead, machine
from dovetail.downstream.machine import normalised as by_channel
from dovetail.downstream.segment.augment import augmented, brought_within
from dovetail.downstream.segment.metrics import ConfusionMatrix
from dovetail.downstream.segment.options import SegmentOptions, Window, build_optimiser
from dovetail.errors import DataError, ModelError, OptionsError


class WithAuxiliary(NamedTuple):
    """What a model with a second head answers in training: logits [B, K, h, w] of both."""

    logits: Tensor
    auxiliary: Tensor


def finetune_segmentation(
    model: nn.Module,
    train: LabelledSet,
    options: SegmentOptions,
    *,
    device: torch.device | str = "cpu",
    on_step: OnStep | None = None,
    threads: int = 0,
) -> list[float]:
    """Fine-tune `model` in place on `train` and return the loss of every step.

    Args:
        model: [B, 3, H, W] -> [B, K, h, w] logits, which are resized to the mask where they are smaller; in training
            `WithAuxiliary` where it has a second head.
        train: Images with masks.
        options: See `SegmentOptions`.
        device: Where to compute.
        on_step: See `OnStep`.
        threads: Threads that prepare batches ahead of their use; the result does not depend on them.

    Raises:
        DovetailError: For an empty set, labels beyond K, a model with another number of classes, a part's learning
            rate whose prefixes match no parameter, and where the loss stops being a number.
    """
    if len(train) == 0:
        raise DataError("The training set is empty; give at least one image with its mask.")
    here = machine_of(options, device, threads)
    here.place(model)
    optimiser = build_optimiser(model, options)
    if options.batch_norm == "reestimate":
        reestimate_batch_norm(model, train, options, device=device)
    model.train()
    if options.batch_norm == "frozen":
        freeze_batch_norm(model)

    def step_loss(batch: tuple[Tensor, Tensor], step: int) -> Tensor:
        images, masks = batch
        with here.autocast(), one_value_told(options):
            answer = model(normalised(images.to(device), options))
        return loss_of(answer, masks.to(device), options)

    batch = partial(training_batch, train, options)
    return fit(optimiser, options, batch, step_loss, threads=threads, on_step=on_step)


def loss_of(answer: Tensor | WithAuxiliary, masks: Tensor, options: SegmentOptions) -> Tensor:
    """Return the cross entropy of a model's answer against masks [B, H, W], an auxiliary head's added by its weight; 0,
    with zero gradients, where no pixel counts.
    """
    if isinstance(answer, WithAuxiliary):
        plain, beside = (loss_of(logits, masks, options) for logits in answer)
        return plain + options.auxiliary_weight * beside
    check_classes(answer, options.classes)
    logits = resized(answer.float(), masks.shape[1:], align_corners=options.align_corners)
    if not bool((masks != options.ignore_index).any()):  # the mean over no pixel is not a number
        return logits.sum() * 0
    return F.cross_entropy(logits, masks, ignore_index=options.ignore_index)


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
    machine_of(options, device).place(model).eval()
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
    size, corners = images.shape[2:], options.align_corners
    pixels = normalised(brought_within(images, options.augmentation.within_px).to(device), options)
    with autocast(options, device):
        if window is None:
            logits = resized(model(pixels).float(), pixels.shape[2:], align_corners=corners)
        else:
            logits = sliding_logits(model, pixels, window, align_corners=corners)
    check_classes(logits, options.classes)
    logits = resized(logits, size, align_corners=corners)
    return logits.argmax(1).cpu()


def sliding_logits(model: nn.Module, pixels: Tensor, window: Window, *, align_corners: bool = False) -> Tensor:
    """Return [B, K, H, W]: logits averaged over windows; the last ones are moved inwards to end at the border."""
    height, width = pixels.shape[2:]
    size = (min(window.size_px, height), min(window.size_px, width))
    total: Tensor | None = None
    count = pixels.new_zeros(1, 1, height, width)
    for top in starts(height, size[0], window.stride_px):
        for left in starts(width, size[1], window.stride_px):
            place = (..., slice(top, top + size[0]), slice(left, left + size[1]))
            logits = resized(model(pixels[place]).float(), size, align_corners=align_corners)
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], height, width)
            total[place] += logits
            count[place] += 1
    assert total is not None  # there is at least one window
    return total / count


def starts(length: int, size: int, stride: int) -> list[int]:
    """Return where windows begin along a side so that all of it is covered."""
    return [min(start, length - size) for start in range(0, max(length - size + stride, 1), stride)]


def training_batch(data: LabelledSet, options: SegmentOptions, step: int) -> tuple[Tensor, Tensor]:
    """Return the augmented images [B, 3, H, W] uint8 and masks [B, H, W] of a step, a pure function of (seed, step).

    The set is gone through in a new order in every round; a small set is used several times in one batch.
    """
    items = []
    for place in options.places(step):
        rng = np.random.default_rng((options.seed, 1, place))
        chosen = data[item_at(place, count=len(data), seed=options.seed)]
        items.append(augmented(chosen, options.augmentation, options.ignore_index, rng))
    images, masks = torch.stack([item.image for item in items]), torch.stack([item.mask for item in items])
    wrong = masks[(masks != options.ignore_index) & ((masks < 0) | (masks >= options.classes))]
    if wrong.numel():
        raise DataError(
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
    return by_channel(images, options.mean, options.std).contiguous(memory_format=torch.channels_last)


def resized(logits: Tensor, size: Sequence[int], *, align_corners: bool = False) -> Tensor:
    """Return logits [B, K, h, w] at `size` (height, width)."""
    if tuple(logits.shape[2:]) == tuple(size):
        return logits
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=align_corners)


def check_classes(logits: Tensor, classes: int) -> None:
    """Raise `ModelError` for a model with another number of classes."""
    if logits.shape[1] != classes:
        raise ModelError(
            f"The model gives {logits.shape[1]} classes, but the data has {classes}; build the model with "
            f"classes={classes}."
        )


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the model's BatchNorm modules that keep running statistics."""
    modules = (module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    return [module for module in modules if module.track_running_stats]


@contextmanager
def one_value_told(options: SegmentOptions) -> Iterator[None]:
    """Turn torch's refusal to normalise over a single value, as after global pooling of one image, into a sentence."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise OptionsError(
            f"A BatchNorm of the model sees a single value with --batch-size {options.batch_size}; give 2 or more."
        ) from error


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
        with autocast(options, device), one_value_told(options):
            model(normalised(images.to(device), options))
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum


def machine_of(options: SegmentOptions, device: torch.device | str, threads: int = 0) -> Machine:
    """Return where to compute, the number format on "auto" resolved."""
    kind: Any = torch.device(device).type
    return replace(machine(kind, options.precision, threads), device=str(device))


def autocast(options: SegmentOptions, device: torch.device | str) -> AbstractContextManager[None]:
    """Return the context of the chosen precision."""
    return machine_of(options, device).autocast()
