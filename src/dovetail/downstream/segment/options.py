"""Options and optimiser for fine-tuning a segmentation model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn

from dovetail.downstream.fit import FitOptions, optimiser_of
from dovetail.downstream.segment.augment import Augmentation
from dovetail.downstream.segment.metrics import IGNORE_INDEX
from dovetail.errors import OptionsError
from dovetail.networks.layer_decay import layer_scales
from dovetail.sizes import Size
from dovetail.views.plan import IMAGENET_MEAN, IMAGENET_STD

SMP_PARTS: Mapping[str, tuple[str, ...]] = {
    "encoder": ("encoder.",),
    "decoder": ("decoder.",),
    "head": ("segmentation_head.",),
}


@dataclass(frozen=True, kw_only=True)
class SegmentOptions(FitOptions):
    """Options for fine-tuning a segmentation model.

    Attributes:
        classes: Number of classes K. Labels are 0 .. K - 1.
        lr_scale: Learning rate factor of each part. The default is 1, and 0 freezes the part.
        parts: Parameter prefixes of each part. Other parameters belong to "rest".
        power: Power of the polynomial decay. 0 keeps the learning rate constant.
        floor: Final learning rate relative to its peak.
        batch_norm: BatchNorm's running statistics: "train" updates them, "reestimate" first replaces them by the mean
            over training images, "frozen" keeps the encoder's and uses them in training, too, and updates the others.
        augmentation: Augmentation of training images. Its `within_px` also applies to evaluation.
        auxiliary_weight: Loss weight of an auxiliary head.
        align_corners: Whether to resize logits with aligned corners, as in some protocols.
        ignore_index: Label of ignored pixels.
        precision: "bf16" for autocast, "float32", or "auto" for bf16 if the hardware supports it natively.
        mean, std: Mean and standard deviation of each channel in [0, 1].
    """

    classes: int
    lr_scale: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=lambda: dict(SMP_PARTS))
    power: float = 0.9
    floor: float = 0.0
    batch_norm: Literal["train", "reestimate", "frozen"] = "train"
    augmentation: Augmentation = field(default_factory=Augmentation)
    auxiliary_weight: float = 0.4
    align_corners: bool = False
    ignore_index: int = IGNORE_INDEX
    precision: Literal["auto", "bf16", "float32"] = "auto"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def decayed(self, step: int) -> float:
        """Return the polynomial decay at `step`."""
        return float(self.floor + (1 - self.floor) * (1 - step / self.steps) ** self.power)


@dataclass(frozen=True)
class Window:
    """Sliding inference: windows of `size_px` every `stride_px`, with logits averaged where they overlap."""

    size_px: Size
    stride_px: Size


def part_of(name: str, parts: Mapping[str, Sequence[str]]) -> str:
    """Return the part that a parameter belongs to, or "rest"."""
    return next((part for part, prefixes in parts.items() if name.startswith(tuple(prefixes))), "rest")


def build_optimiser(model: nn.Module, options: SegmentOptions) -> torch.optim.Optimizer:
    """Return the optimiser with one parameter group for each learning rate and weight decay."""
    scales: dict[str, float] = {}
    seen: set[str] = set()
    names, encoder = [name for name, _ in model.named_parameters()], options.parts.get("encoder", ())
    by_layer = layer_scales(names, encoder=encoder, decay=options.layer_decay)
    for name, parameter in model.named_parameters():
        part = part_of(name, options.parts)
        seen.add(part)
        rate = options.lr_scale.get(part, 1.0) * by_layer[name]
        scales[name] = rate if parameter.requires_grad else 0.0  # parts of the user's own module may be frozen
        parameter.requires_grad_(scales[name] > 0)
    missing = sorted(set(options.lr_scale) - seen)
    if missing:
        raise OptionsError(
            f"lr_scale has the part {missing[0]!r}, but no parameter belongs to it; choose from "
            f"{', '.join(sorted(seen))}."
        )
    named = [(name, parameter) for name, parameter in model.named_parameters() if scales[name] > 0]
    return optimiser_of(named, scales, options, fused=True)
