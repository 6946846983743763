"""Fine-tuning and evaluation for detection and instance segmentation.

CNNs use the 1x schedule (Detectron): 12 epochs, SGD with momentum 0.9, weight decay 1e-4, a learning rate of 0.02 for
16 images per step (scaled linearly for fewer images), divided by 10 at 2/3 and 8/9 of the steps, with linear warm-up.
ViTs use AdamW with a learning rate of 1e-4 (as iBOT; SelfPatch uses 5e-5 for 8 images) and weight decay 0.05, divided
by 10 after 8 and 11 of 12 epochs. Departures: biases are not decayed; the pyramid of a ViT uses evenly spaced blocks
(2, 5, 8, 11 of 12 instead of 3, 5, 7, 11), as it may be pre-trained; ViTs have no stochastic depth, and their images
are resized like those of CNNs. The batch of step k is a pure function of (seed, k), except for torchvision's random
resizing.

Shapes: H x W pixels, N objects.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from dovetail.downstream.fit import FitOptions, OnStep, fit, optimiser_of
from dovetail.downstream.labels.coco import CocoSet
from dovetail.downstream.labels.coco_doubts import objects_at_edges
from dovetail.downstream.labels.coco_object import CocoImage, box_within, run_length_of
from dovetail.downstream.labels.subsets import item_at
from dovetail.downstream.machine import Machine, ahead
from dovetail.downstream.own import OwnPyramid
from dovetail.downstream.segment.loop import freeze_batch_norm
from dovetail.errors import DataError, counted
from dovetail.networks.layer_decay import layer_scales

Target = dict[str, Tensor]
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DetectOptions(FitOptions):
    """Options for fine-tuning a detector.

    Attributes:
        with_masks: Whether to train on masks.
        batch_norm: BatchNorm of the backbone: "train", or "frozen" to use fixed running statistics in training.
    """

    optimiser: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.02
    warmup_steps: int = 1000
    drops: tuple[float, ...] = (2 / 3, 8 / 9)
    with_masks: bool = False
    batch_norm: Literal["train", "frozen"] = "train"


def training_item(image: CocoImage, *, flip: bool, with_masks: bool) -> tuple[Tensor, Target]:
    """Return an image [3, H, W] in [0, 1] and its target.

    The target has `boxes` [N, 4] (left, top, right, bottom in pixels), `labels` [N] from 1, and `masks` [N, H, W].
    Boxes are clipped to the image. Crowds and boxes with less than a pixel inside the image are skipped, and for masks,
    so are objects without a mask or with an empty one.
    """
    pixels = read_pixels(image)
    objects = [one for one in image.objects if not one.crowd and box_within(one, image) is not None]
    target: Target = {}
    if with_masks:
        drawn = [one.mask(image.height, image.width) for one in objects]
        kept = [index for index, mask in enumerate(drawn) if mask.any()]
        objects = [objects[index] for index in kept]
        empty = np.zeros((0, image.height, image.width), dtype=np.uint8)
        masks = torch.from_numpy(np.stack([drawn[index] for index in kept]).astype(np.uint8) if kept else empty)
        target["masks"] = masks.flip(2) if flip else masks
    boxes = torch.tensor([box_within(one, image) for one in objects], dtype=torch.float32).reshape(-1, 4)
    if flip:
        boxes = torch.stack([image.width - boxes[:, 2], boxes[:, 1], image.width - boxes[:, 0], boxes[:, 3]], dim=1)
    target["boxes"] = boxes
    target["labels"] = torch.tensor([one.label + 1 for one in objects], dtype=torch.int64)
    return (pixels.flip(2) if flip else pixels), target


def read_pixels(image: CocoImage) -> Tensor:
    """Return pixels [3, H, W] in [0, 1]. Raise `DovetailError` if the size differs from that in the annotations."""
    return image.pixels().float() / 255


def training_batch(data: CocoSet, options: DetectOptions, step: int) -> tuple[list[Tensor], list[Target]]:
    """Return the images and targets of a step, a pure function of (seed, step)."""
    images, targets = [], []
    for place in options.places(step):
        flip = bool(np.random.default_rng((options.seed, 1, place)).random() < 0.5)
        chosen = data.images[item_at(place, count=len(data), seed=options.seed)]
        image, target = training_item(chosen, flip=flip, with_masks=options.with_masks)
        images.append(image)
        targets.append(target)
    return images, targets


def finetune_detection(
    model: nn.Module,
    data: CocoSet,
    options: DetectOptions,
    *,
    machine: Machine,
    on_step: OnStep | None = None,
) -> list[float]:
    """Fine-tune a torchvision detector in place and return the loss of every step.

    Args:
        model: Detector that returns losses for (images, targets) in training, as in torchvision.
        data: Images with or without objects.
        options: See `DetectOptions`.
        machine: Device and precision.
        on_step: See `OnStep`.

    Raises:
        DovetailError: The training set is empty, or the loss becomes NaN or infinite.
    """
    if len(data) == 0:
        raise DataError("The training set is empty; add at least one image.")
    tell_objects(data, options)
    machine.place(model).train()
    if options.batch_norm == "frozen":
        freeze_batch_norm(model.get_submodule("backbone"))

    def loss_of(batch: tuple[list[Tensor], list[Target]], step: int) -> Tensor:
        images, targets = batch
        placed = [{name: value.to(machine.device) for name, value in target.items()} for target in targets]
        with backbone_in(model, machine):
            parts: Mapping[str, Tensor] = model([image.to(machine.device) for image in images], placed)
        return torch.stack(list(parts.values())).sum()

    batch = partial(training_batch, data, options)
    return fit(build_optimiser(model, options), options, batch, loss_of, threads=machine.threads, on_step=on_step)


def tell_objects(data: CocoSet, options: DetectOptions) -> None:
    """Log how many objects are clipped or skipped, and how many have no mask if masks are trained."""
    unmasked = unmasked_objects(data) if options.with_masks else ""
    for sentence in (objects_at_edges(data, with_masks=options.with_masks, learned=True), unmasked):
        if sentence:
            log.warning("%s", sentence)


def unmasked_objects(data: CocoSet) -> str:
    """Return a sentence about objects with a box but no mask, or an empty string."""
    count = sum(not one.crowd for image in data.images for one in image.unmasked)
    if not count:
        return ""
    return (
        f"{data.path}: {counted(count, 'object')} with a box but no mask are treated as background in training, but "
        "box AP includes them; add the masks, or use --task boxes."
    )


def build_optimiser(model: nn.Module, options: DetectOptions) -> torch.optim.Optimizer:
    """Return the optimiser. Norms and biases are not decayed."""
    named = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    scales = layer_scales([name for name, _ in named], encoder=encoder_of(model), decay=options.layer_decay)
    return optimiser_of(named, scales, options)


def encoder_of(model: nn.Module) -> tuple[str, ...]:
    """Return the prefixes of a detector's encoder parameters, for this project's pyramids and torchvision's models."""
    backbone = model.get_submodule("backbone")
    body = dict(backbone.named_children()).get("body", backbone)
    if isinstance(body, OwnPyramid):
        inner = "" if body is backbone else "body."
        return (f"backbone.{inner}network.model.{body.network.encoder_prefix}",)
    own = tuple(f"backbone.{inner}encoder." for inner in ("", "body."))
    return own if any(name.startswith(own) for name, _ in model.named_parameters()) else ("backbone.body.",)


@contextmanager
def backbone_in(model: nn.Module, machine: Machine) -> Iterator[None]:
    """Run only the backbone of a detector in the machine's precision.

    Boxes are decoded in the precision of the heads' outputs, and bfloat16 is too coarse for pixel coordinates.
    """
    backbone = model.get_submodule("backbone")
    plain = backbone.forward

    def forward(pixels: Tensor) -> OrderedDict[str, Tensor]:
        with machine.autocast():
            maps: OrderedDict[str, Tensor] = plain(pixels)
        return OrderedDict((name, value.float()) for name, value in maps.items())

    backbone.forward = forward
    try:
        yield
    finally:
        del backbone.forward


@torch.no_grad()
def detect(model: nn.Module, images: list[Tensor], machine: Machine) -> list[dict[str, Tensor]]:
    """Return the detections in images [3, H, W] in [0, 1], on the CPU: boxes, labels, scores and masks [N, 1, H, W] in
    [0, 1]. The detector must be in evaluation mode."""
    with backbone_in(model, machine):
        found: list[dict[str, Tensor]] = model([image.to(machine.device) for image in images])
    return [{name: value.cpu() for name, value in one.items()} for one in found]


def detections_of(
    model: nn.Module,
    data: CocoSet,
    *,
    machine: Machine,
    batch_size: int = 4,
    on_batch: Callable[[int], None] | None = None,
) -> list[dict[str, Any]]:
    """Return the COCO result dictionaries of all images in a dataset."""
    machine.place(model).eval()
    results: list[dict[str, Any]] = []
    pixels = ahead(read_pixels, data.images, threads=machine.threads)
    for start in range(0, len(data), batch_size):
        images = data.images[start : start + batch_size]
        found = detect(model, [next(pixels) for _ in images], machine)
        for image, one in zip(images, found, strict=True):
            results += [{"image_id": image.id, **entry} for entry in as_coco(one, data.ids)]
        if on_batch is not None:
            on_batch(len(images))
    return results


def as_coco(found: Mapping[str, Tensor], ids: tuple[int, ...]) -> list[dict[str, Any]]:
    """Convert the detections of an image to category_id, bbox, score and, with masks, segmentation."""
    entries: list[dict[str, Any]] = []
    for index, (box, label, score) in enumerate(
        zip(found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True)
    ):
        if not 1 <= label <= len(ids):
            continue  # unused background output of RetinaNet
        left, top, right, bottom = box
        entry = {"category_id": ids[label - 1], "bbox": [left, top, right - left, bottom - top], "score": score}
        if "masks" in found:
            entry["segmentation"] = run_length_of((found["masks"][index, 0] > 0.5).numpy())
        entries.append(entry)
    return entries
