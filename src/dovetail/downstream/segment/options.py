"""How a segmenter is fine-tuned: the options, and the optimiser that they mean."""

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
from dovetail.views.plan import IMAGENET_MEAN, IMAGENET_STD

SMP_PARTS: Mapping[str, tuple[str, ...]] = {
    "encoder": ("encoder.",),
    "decoder": ("decoder.",),
    "head": ("segmentation_head.",),
}


@dataclass(frozen=True, kw_only=True)
class SegmentOptions(FitOptions):
    """How a model is fine-tuned.

    Attributes:
        classes: K; labels are 0 .. K - 1.
        lr_scale: Factor on `lr` for a part; parts that are not named have 1, a factor of 0 freezes the part.
        parts: Prefixes of each part's parameters; parameters of no part count as "rest".
        power: Of the polynomial decay; 0 keeps the rate.
        floor: Share of its peak that the rate decays to.
        batch_norm: BatchNorm's running statistics: "train" goes on from those there, "reestimate" first replaces them
            by the mean over the training images (which those of the steps soon replace), "frozen" keeps them
            fixed and normalises by them in training too.
        augmentation: What training images go through; its `within_px` holds in evaluation too.
        auxiliary_weight: Of the loss of an auxiliary head, where the model has one.
        align_corners: Whether logits are resized so that the centres of their corner cells are those of the corner
            pixels, as some protocols have it.
        ignore_index: The label of pixels that do not count.
        precision: "bf16" for autocast, "float32", or "auto": bf16 where the hardware multiplies it natively.
        mean, std: Of each channel in [0, 1], for normalisation.
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
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def decayed(self, step: int) -> float:
        """Return the polynomial decay at `step`."""
        return float(self.floor + (1 - self.floor) * (1 - step / self.steps) ** self.power)


@dataclass(frozen=True)
class Window:
    """Sliding inference: windows of `size_px` every `stride_px`, their logits averaged where they overlap."""

    size_px: int
    stride_px: int


def part_of(name: str, parts: Mapping[str, Sequence[str]]) -> str:
    """Return the part that a parameter belongs to, "rest" for none."""
    return next((part for part, prefixes in parts.items() if name.startswith(tuple(prefixes))), "rest")


def build_optimiser(model: nn.Module, options: SegmentOptions) -> torch.optim.Optimizer:
    """Return the optimiser, with one group for each learning rate and weight decay."""
    scales: dict[str, float] = {}
    seen: set[str] = set()
    names, encoder = [name for name, _ in model.named_parameters()], options.parts.get("encoder", ())
    by_layer = layer_scales(names, encoder=encoder, decay=options.layer_decay)
    for name, parameter in model.named_parameters():
        part = part_of(name, options.parts)
        seen.add(part)
        scales[name] = options.lr_scale.get(part, 1.0) * by_layer[name]
        parameter.requires_grad_(scales[name] > 0)
    missing = sorted(set(options.lr_scale) - seen)
    if missing:
        raise OptionsError(
            f"A learning rate was given for part {missing[0]!r}, but no parameter belongs to it; the model's parts "
            f"are {', '.join(sorted(seen))}."
        )
    named = [(name, parameter) for name, parameter in model.named_parameters() if scales[name] > 0]
    return optimiser_of(named, scales, options, fused=True)
