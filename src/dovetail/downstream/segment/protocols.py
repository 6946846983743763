"""Published fine-tuning protocols: DeCon's configurations of mmsegmentation's FCN, and protocols for ViTs on ADE20K.

| dataset | images within | crop | model | steps | optimiser, lr, weight decay | schedule | stride | inference |
|---|---|---|---|---|---|---|---|---|
| VOC | 2049 x 513 | 513 | FCN | 30,000 | SGD, 0.003, 1e-4 | tenths at 70 and 90 % | 16 | whole |
| Cityscapes | 2049 x 1025 | 769 | FCN | 90,000 | SGD, 0.01, 1e-4 | tenths at 70 and 90 % | 16 | 769 every 513 |
| ADE20K | 2048 x 512 | 512 | FCN | 80,000 | SGD, 0.01, 5e-4 | power 0.9, down to 1e-4 | 8 | whole |
| ADE20K | 2048 x 512 | 512 | Semantic FPN on a ViT | 40,000 | AdamW, 6e-5, 0.01 | power 1 | | whole |
| ADE20K | 2048 x 512 | 512 | UPerNet on a ViT | 160,000 | AdamW, 3e-5, 0.05 | power 1 | | 512 every 341 |

All protocols use 16 images per step and a random scale of 0.5 to 2 relative to "images within" (longest and shorter
side), which is also the size for evaluation. On ADE20K, colours are distorted, and no class may cover three quarters of
a crop. On VOC and Cityscapes, the FCN has 256 channels with dilation 6 and resizes logits with `align_corners`. On
ADE20K, it has 512 channels with dilation 1, a third convolution over decoder and encoder, dropout 0.1, and an auxiliary
head with weight 0.4. ViTs have 1500 warm-up steps, and UPerNet has layer decay 0.9. The protocol of Semantic FPN is
SelfPatch's. That of UPerNet is iBOT's for ViT-S, with the same blocks (3, 5, 7, 11 of 12) and the width of the ViT; for
ViT-B, iBOT uses a learning rate of 8e-5.

Departures: images are resized with antialiasing, and crops are padded with black instead of the mean colour. On VOC and
Cityscapes, the official configurations divide pixels in 0 to 255 by standard deviations that are meant for 0 to 1;
here, pixels are in 0 to 1. UPerNet has no auxiliary head. The head of Semantic FPN has GroupNorm as first proposed,
instead of SelfPatch's BatchNorm. ViTs have no stochastic depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from dovetail.downstream.segment.model import FCNSpec, HeadName
from dovetail.downstream.segment.options import Window


@dataclass(frozen=True)
class Training:
    """Training of a kind of model on a dataset.

    Attributes:
        steps: Optimiser steps.
        lr: Peak learning rate.
        weight_decay: Weight decay.
        optimiser: Name of the optimiser.
        decay_vectors: Whether to decay biases and norms, too, as mmsegmentation does by default.
        warmup_steps: Steps of linear warm-up.
        power: Power of the polynomial decay. 0 keeps the learning rate constant.
        floor: Final learning rate relative to its peak.
        drops: Fractions of the steps after which the learning rate is divided by 10.
        layer_decay: Factor of the learning rate from each encoder layer to the one before it.
        window: Window of sliding inference. Overrides that of the dataset.
    """

    steps: int
    lr: float
    weight_decay: float
    optimiser: Literal["adamw", "sgd"] = "sgd"
    decay_vectors: bool = True
    warmup_steps: int = 0
    power: float = 0.9
    floor: float = 0.0
    drops: tuple[float, ...] = ()
    layer_decay: float = 1.0
    window: Window | None = None


@dataclass(frozen=True)
class Protocol:
    """The protocol of a dataset (see the module's table). The defaults are for datasets without a protocol.

    Attributes:
        within_px: Longest and shorter side that images are resized to, or None to keep their size.
        crop: Side of crops in pixels, or None for the dataset's default.
        scale: Range of the random resize factor.
        output_stride: Output stride of an FCN with a ResNet.
        window: Window of sliding inference, or None for whole images.
        fcn: Specification of an FCN.
        align_corners: Whether to resize the logits of an FCN with aligned corners.
        distort: Whether to distort colours.
        most_of_one_class: Fraction of a crop that a class must not reach.
        training: Training by kind of head. Other heads use the defaults of `dovetail.downstream.segment.job`.
    """

    within_px: tuple[int, int] | None = None
    crop: int | None = None
    scale: tuple[float, float] = (0.75, 1.5)
    output_stride: Literal[8, 16, 32] = 32
    window: Window | None = None
    fcn: FCNSpec = field(default_factory=FCNSpec)
    align_corners: bool = False
    distort: bool = False
    most_of_one_class: float = 1.0
    training: Mapping[HeadName, Training] = field(default_factory=dict)

    @property
    def steps(self) -> int | None:
        """Steps of models without a protocol: those of the dataset's FCN, or None without one."""
        return self.training["fcn"].steps if "fcn" in self.training else None


VOC = Protocol(
    within_px=(2049, 513),
    crop=513,
    scale=(0.5, 2.0),
    output_stride=16,
    fcn=FCNSpec(dropout=0.0),
    align_corners=True,
    training={"fcn": Training(30_000, 0.003, 1e-4, power=0.0, drops=(0.7, 0.9))},
)
CITYSCAPES = replace(
    VOC,
    within_px=(2049, 1025),
    crop=769,
    window=Window(769, 513),
    training={"fcn": Training(90_000, 0.01, 1e-4, power=0.0, drops=(0.7, 0.9))},
)
SEMANTIC_FPN = Training(40_000, 6e-5, 0.01, optimiser="adamw", decay_vectors=False, warmup_steps=1500, power=1.0)
UPERNET = replace(SEMANTIC_FPN, steps=160_000, lr=3e-5, weight_decay=0.05, layer_decay=0.9, window=Window(512, 341))
ADE20K = Protocol(
    within_px=(2048, 512),
    crop=512,
    scale=(0.5, 2.0),
    output_stride=8,
    fcn=FCNSpec(channels=512, dilation=1, concat=True, auxiliary=True),
    distort=True,
    most_of_one_class=0.75,
    training={"fcn": Training(80_000, 0.01, 5e-4, floor=0.01), "vit-fpn": SEMANTIC_FPN, "upernet": UPERNET},
)
PROTOCOLS: Mapping[str, Protocol] = {"voc": VOC, "cityscapes": CITYSCAPES, "ade20k": ADE20K}
