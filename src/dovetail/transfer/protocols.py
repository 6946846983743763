"""How the dense-SSL papers fine-tune on well-known sets: DeCon's configurations of mmsegmentation's FCN.

| set | images within | crop | steps | lr, weight decay | schedule | stride | inference |
|---|---|---|---|---|---|---|---|
| VOC | 2049 x 513 | 513 | 30,000 | 0.003, 1e-4 | tenths at 70 and 90 % | 16 | whole |
| Cityscapes | 2049 x 1025 | 769 | 90,000 | 0.01, 1e-4 | tenths at 70 and 90 % | 16 | windows of 769 every 513 |
| ADE20K | 2048 x 512 | 512 | 80,000 | 0.01, 5e-4 | polynomial, 0.9, down to 1e-4 | 8 | whole |

All with SGD, 16 images a step, random scale 0.5 to 2 of the size that "images within" gives them (longest and shorter
side), at which they are measured too. The FCN has 256 channels of dilation 6 and resizes logits with `align_corners` on
VOC and Cityscapes; on ADE20K 512 channels of dilation 1, a third convolution over decoder and encoder together, dropout
0.1, an auxiliary head of weight 0.4, and distorted colours in crops that no class fills to three quarters.

What departs: images are resized with antialiasing; on VOC and Cityscapes the official configurations divide pixels in
0 to 255 by deviations that are meant for 0 to 1, and here pixels are in 0 to 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from dovetail.transfer.segment_options import Window
from dovetail.transfer.segmenters import FCNSpec


@dataclass(frozen=True)
class Protocol:
    """What the module's table says about a set; by default what holds for a set without a protocol.

    Attributes:
        within_px: Longest and shorter side that images are brought to; None leaves them as they are.
        crop: Side of crops in pixels; None for the set's own.
        scale: Of random resizing.
        steps: Optimiser steps; None for a number in proportion to the images.
        lr: Peak learning rate of an FCN; None for the rules of every model.
        weight_decay: Of an FCN.
        floor: Share of its peak that the rate decays to.
        drops: Shares of the steps after which the rate is a tenth of what it was.
        output_stride: Of an FCN on a ResNet.
        window: Of sliding inference; None looks at whole images.
        fcn: How an FCN is built.
        align_corners: How an FCN's logits are resized.
        distort: Whether colours are distorted.
        most_of_one_class: Share of a crop that one class must not reach.
    """

    within_px: tuple[int, int] | None = None
    crop: int | None = None
    scale: tuple[float, float] = (0.75, 1.5)
    steps: int | None = None
    lr: float | None = None
    weight_decay: float = 1e-4
    floor: float = 0.0
    drops: tuple[float, ...] = ()
    output_stride: Literal[8, 16, 32] = 32
    window: Window | None = None
    fcn: FCNSpec = field(default_factory=FCNSpec)
    align_corners: bool = False
    distort: bool = False
    most_of_one_class: float = 1.0


PROTOCOLS: Mapping[str, Protocol] = {
    "voc": Protocol(
        within_px=(2049, 513),
        crop=513,
        scale=(0.5, 2.0),
        steps=30_000,
        lr=0.003,
        drops=(0.7, 0.9),
        output_stride=16,
        fcn=FCNSpec(dropout=0.0),
        align_corners=True,
    ),
    "cityscapes": Protocol(
        within_px=(2049, 1025),
        crop=769,
        scale=(0.5, 2.0),
        steps=90_000,
        lr=0.01,
        drops=(0.7, 0.9),
        output_stride=16,
        window=Window(769, 513),
        fcn=FCNSpec(dropout=0.0),
        align_corners=True,
    ),
    "ade20k": Protocol(
        within_px=(2048, 512),
        crop=512,
        scale=(0.5, 2.0),
        steps=80_000,
        lr=0.01,
        weight_decay=5e-4,
        floor=0.01,
        output_stride=8,
        fcn=FCNSpec(channels=512, dilation=1, concat=True, auxiliary=True),
        distort=True,
        most_of_one_class=0.75,
    ),
}
