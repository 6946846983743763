"""Fine-tuning and evaluation for semantic segmentation, for any module that returns logits [B, K, h, w].

Training uses polynomial decay `lr (1 - step / steps)^0.9` and random scale, crop and flip, as is common. Their
parameters, and a learning rate for each part of the model, are options. The batch of step k is a pure function of
(seed, k). Only the model itself (dropout) uses the global random state.

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
from dovetail.sizes import sides


class WithAuxiliary(NamedTuple):
    """Output of a model with an auxiliary head in training: logits [B, K, h, w] of both heads."""

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
        model: Module [B, C, H, W] -> logits [B, K, h, w], which are resized to the mask. With an auxiliary head, it
            returns `WithAuxiliary` in training.
        train: Images with masks.
        options: See `SegmentOptions`.
        device: Device to train on.
        on_step: See `OnStep`.
        threads: Number of threads that prefetch batches. The result does not depend on it.

    Raises:
        DovetailError: The training set is empty, a label is invalid, the model has another number of classes, the
            prefixes of a part match no parameter, or the loss becomes NaN or infinite.
    """
    if len(train) == 0:
        raise DataError("The training set is empty; add at least one image with its mask.")
    here = machine_of(options, device, threads)
    here.place(model)
    optimiser = build_optimiser(model, options)
    if options.batch_norm == "reestimate":
        reestimate_batch_norm(model, train, options, device=device)
    model.train()
    if options.batch_norm == "frozen":
        freeze_batch_norm(model, options.parts.get("encoder", ()))

    def step_loss(batch: tuple[Tensor, Tensor], step: int) -> Tensor:
        images, masks = batch
        with here.autocast(), single_value_error(options):
            answer = model(normalised(images.to(device), options))
        return loss_of(answer, masks.to(device), options)

    batch = partial(training_batch, train, options)
    return fit(optimiser, options, batch, step_loss, threads=threads, on_step=on_step)


def loss_of(answer: Tensor | WithAuxiliary, masks: Tensor, options: SegmentOptions) -> Tensor:
    """Return the cross entropy of a model's output against masks [B, H, W], plus that of a weighted auxiliary head.

    The loss is 0 with zero gradients if all pixels are ignored.
    """
    if isinstance(answer, WithAuxiliary):
        plain, beside = (loss_of(logits, masks, options) for logits in answer)
        return plain + options.auxiliary_weight * beside
    check_classes(answer, options.classes)
    logits = resized(answer.float(), masks.shape[1:], align_corners=options.align_corners)
    if not bool((masks != options.ignore_index).any()):  # the mean over no pixels is NaN
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
    """Return the confusion matrix of `model` on `data`, at the size of the masks.

    Args:
        model: Module [B, C, H, W] -> logits [B, K, h, w].
        data: Images with masks.
        options: As in fine-tuning. Options for training are not used, except `batch_size`.
        window: Window of sliding inference, or None for whole images.
        device: Device to use.
        threads: Number of threads that prefetch images.
        on_batch: Called after every batch with its number of images.
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
    """Return the classes [B, H, W] of `images` [B, C, H, W] in 0 to 255. The model must be in evaluation mode."""
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
    """Return logits [B, K, H, W] averaged over windows. The last windows are moved inwards to end at the border."""
    height, width = pixels.shape[2:]
    high, wide = sides(window.size_px)
    size, strides = (min(high, height), min(wide, width)), sides(window.stride_px)
    total: Tensor | None = None
    count = pixels.new_zeros(1, 1, height, width)
    for top in starts(height, size[0], strides[0]):
        for left in starts(width, size[1], strides[1]):
            place = (..., slice(top, top + size[0]), slice(left, left + size[1]))
            logits = resized(model(pixels[place]).float(), size, align_corners=align_corners)
            if total is None:
                total = logits.new_zeros(*logits.shape[:2], height, width)
            total[place] += logits
            count[place] += 1
    assert total is not None  # there is at least one window
    return total / count


def starts(length: int, size: int, stride: int) -> list[int]:
    """Return the starts of windows along a side so that all of it is covered."""
    return [min(start, length - size) for start in range(0, max(length - size + stride, 1), stride)]


def training_batch(data: LabelledSet, options: SegmentOptions, step: int) -> tuple[Tensor, Tensor]:
    """Return the augmented images [B, C, H, W] and masks [B, H, W] of a step, a pure function of (seed, step).

    Every epoch has another order. A small dataset may be used several times in a batch.
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
            f"A mask contains label {int(wrong.max())}, but there are {options.classes} classes "
            f"(0 to {options.classes - 1}); correct the number of classes."
        )
    return images, masks


def batches_of_one_size(data: LabelledSet, batch_size: int, *, threads: int = 0) -> Iterator[list[Labelled]]:
    """Yield the items in order, in batches of images of the same size. Only few items are in memory at once."""
    batch: list[Labelled] = []
    for item in ahead(data.__getitem__, range(len(data)), threads=threads):
        if batch and (len(batch) == batch_size or batch[0].mask.shape != item.mask.shape):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def normalised(images: Tensor, options: SegmentOptions) -> Tensor:
    """Convert images [B, C, H, W] in 0 to 255 to normalised float32 with channels-last memory format."""
    return by_channel(images, options.mean, options.std).contiguous(memory_format=torch.channels_last)


def resized(logits: Tensor, size: Sequence[int], *, align_corners: bool = False) -> Tensor:
    """Resize logits [B, K, h, w] to `size` (height, width)."""
    if tuple(logits.shape[2:]) == tuple(size):
        return logits
    return F.interpolate(logits, tuple(size), mode="bilinear", align_corners=align_corners)


def check_classes(logits: Tensor, classes: int) -> None:
    """Raise `ModelError` if the model has another number of classes."""
    if logits.shape[1] != classes:
        raise ModelError(
            f"The model has {logits.shape[1]} classes, but the data has {classes}; build the model with "
            f"classes={classes}."
        )


def batch_norms(model: nn.Module, prefixes: Sequence[str] = ("",)) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the BatchNorm modules with running statistics whose parameters start with one of the prefixes."""
    return [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.track_running_stats
        and f"{name}.".startswith(tuple(prefixes))
    ]


@contextmanager
def single_value_error(options: SegmentOptions) -> Iterator[None]:
    """Convert torch's error about BatchNorm over a single value (global pooling of one image) to a `DovetailError`."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise OptionsError(
            f"A BatchNorm layer gets a single value with --batch-size {options.batch_size}; use 2 or more."
        ) from error


def freeze_batch_norm(model: nn.Module, prefixes: Sequence[str] = ("",)) -> None:
    """Put BatchNorm into evaluation mode, so it uses its running statistics and does not update them.

    Fine-tuning passes the prefixes of the encoder. A decoder or head may start from random weights, and has no
    statistics to keep then.
    """
    for module in batch_norms(model, prefixes):
        module.eval()


@torch.no_grad()
def reestimate_batch_norm(
    model: nn.Module, data: LabelledSet, options: SegmentOptions, *, device: torch.device | str = "cpu", steps: int = 8
) -> None:
    """Recompute BatchNorm's running statistics as the mean over `steps` training batches."""
    norms = batch_norms(model)
    momenta = [module.momentum for module in norms]
    for module in norms:
        module.reset_running_stats()
        module.momentum = None  # cumulative mean over batches
    model.train()
    for step in range(steps):
        images, _ = training_batch(data, options, step)
        with autocast(options, device), single_value_error(options):
            model(normalised(images.to(device), options))
    for module, momentum in zip(norms, momenta, strict=True):
        module.momentum = momentum


def machine_of(options: SegmentOptions, device: torch.device | str, threads: int = 0) -> Machine:
    """Return the device and precision, with "auto" resolved."""
    kind: Any = torch.device(device).type
    return replace(machine(kind, options.precision, threads), device=str(device))


def autocast(options: SegmentOptions, device: torch.device | str) -> AbstractContextManager[None]:
    """Return the autocast context of the precision."""
    return machine_of(options, device).autocast()
