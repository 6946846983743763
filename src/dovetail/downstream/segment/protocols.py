"""How papers fine-tune on well-known sets: DeCon's configurations of mmsegmentation's FCN, and ViTs' on ADE20K.

| set | images within | crop | model | steps | optimiser, lr, weight decay | schedule | stride | inference |
|---|---|---|---|---|---|---|---|---|
| VOC | 2049 x 513 | 513 | FCN | 30,000 | SGD, 0.003, 1e-4 | tenths at 70 and 90 % | 16 | whole |
| Cityscapes | 2049 x 1025 | 769 | FCN | 90,000 | SGD, 0.01, 1e-4 | tenths at 70 and 90 % | 16 | 769 every 513 |
| ADE20K | 2048 x 512 | 512 | FCN | 80,000 | SGD, 0.01, 5e-4 | power 0.9, down to 1e-4 | 8 | whole |
| ADE20K | 2048 x 512 | 512 | Semantic FPN on a ViT | 40,000 | AdamW, 6e-5, 0.01 | power 1 | | whole |
| ADE20K | 2048 x 512 | 512 | UPerNet on a ViT | 160,000 | AdamW, 3e-5, 0.05 | power 1 | | 512 every 341 |

All with 16 images a step, random scale 0.5 to 2 of the size that "images within" gives them (longest and shorter side),
at which they are measured too; on ADE20K with distorted colours in crops that no class fills to three quarters. The FCN
has 256 channels of dilation 6 and resizes logits with `align_corners` on VOC and Cityscapes; on ADE20K 512 channels of
dilation 1, a third convolution over decoder and encoder together, dropout 0.1, and an auxiliary head of weight 0.4.
ViTs warm up for 1500 steps; UPerNet has layer decay 0.9. Semantic FPN's is SelfPatch's protocol, UPerNet's is iBOT's
for ViT-S, on the same blocks (3, 5, 7, 11 of 12) and as wide as the ViT; for ViT-B iBOT has a rate of 8e-5.

What departs: images are resized with antialiasing, and crops beyond them are black, not of the mean colour; on VOC and
Cityscapes the official configurations divide pixels in 0 to 255 by deviations that are meant for 0 to 1, and here
pixels are in 0 to 1; UPerNet has no auxiliary head; Semantic FPN's head has GroupNorm, as where it was proposed, and
SelfPatch's BatchNorm; ViTs have no stochastic depth.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from dovetail.downstream.segment.model import FCNSpec, HeadName
from dovetail.downstream.segment.options import Window


@dataclass(frozen=True)
class Training:
    """How a kind of model is trained on a set.

    Attributes:
        steps: Optimiser steps.
        lr: Peak learning rate.
        weight_decay: Of what `decay_vectors` says.
        optimiser: Its kind.
        decay_vectors: Whether biases and norms are decayed too, as mmsegmentation does unless told otherwise.
        warmup_steps: Steps of linear warm-up.
        power: Of the polynomial decay; 0 keeps the rate.
        floor: Share of its peak that the rate decays to.
        drops: Shares of the steps after which the rate is a tenth of what it was.
        layer_decay: Factor from the rate of an encoder's layer to that of the layer before it.
        window: Of sliding inference, where it is not the set's.
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
    """What the module's table says about a set; by default what holds for a set without a protocol.

    Attributes:
        within_px: Longest and shorter side that images are brought to; None leaves them as they are.
        crop: Side of crops in pixels; None for the set's own.
        scale: Of random resizing.
        output_stride: Of an FCN on a ResNet.
        window: Of sliding inference; None looks at whole images.
        fcn: How an FCN is built.
        align_corners: How an FCN's logits are resized.
        distort: Whether colours are distorted.
        most_of_one_class: Share of a crop that one class must not reach.
        training: By the kind of head; what is not there is trained by the rules of `segmenting`.
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
        """The steps of models without a protocol of their own: those of the set's FCN; None without one."""
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
