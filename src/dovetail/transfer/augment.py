"""What training images and their masks go through together: random scale, crop, flips, brightness and contrast.

Shapes: H x W pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dovetail.transfer.labelled import Labelled


@dataclass(frozen=True)
class Augmentation:
    """What training images go through.

    Attributes:
        crop_px: Height and width of crops, smaller images padded with what does not count; None keeps whole images,
            which must then be of one size.
        scale: Smallest and largest factor of a random resize before the crop; (1, 1) turns it off.
        flip_p: Probability of mirroring left to right.
        flip_vertical_p: Probability of mirroring top to bottom, for pictures without an up.
        jitter: Largest relative change of brightness and of contrast; 0 turns it off.
    """

    crop_px: tuple[int, int] | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    flip_p: float = 0.5
    flip_vertical_p: float = 0.0
    jitter: float = 0.0


def augmented(item: Labelled, plan: Augmentation, ignore_index: int, rng: np.random.Generator) -> Labelled:
    """Return an image and its mask, changed by what `rng` draws."""
    image, mask = item.image, item.mask
    if plan.scale != (1.0, 1.0):
        factor = rng.uniform(*plan.scale)
        size = tuple(max(round(side * factor), 1) for side in mask.shape)
        image = F.interpolate(image[None].float(), size, mode="bilinear", antialias=True)[0].round().to(torch.uint8)
        mask = F.interpolate(mask[None, None].double(), size, mode="nearest-exact")[0, 0].long()
    if plan.crop_px is not None:
        image, mask = cropped(image, mask, plan.crop_px, ignore_index, rng)
    if rng.random() < plan.flip_p:
        image, mask = image.flip(2), mask.flip(1)
    if rng.random() < plan.flip_vertical_p:
        image, mask = image.flip(1), mask.flip(0)
    if plan.jitter:
        brightness, contrast = rng.uniform(1 - plan.jitter, 1 + plan.jitter, size=2)
        values = image.float() * brightness
        values = (values - values.mean()) * contrast + values.mean()
        image = values.round().clamp(0, 255).to(torch.uint8)
    return Labelled(image, mask)


def cropped(
    image: Tensor, mask: Tensor, size: tuple[int, int], ignore_index: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return a random crop; what lies beyond a smaller image is black and does not count."""
    bottom, right = (max(want - have, 0) for want, have in zip(size, mask.shape, strict=True))
    if bottom or right:
        image = F.pad(image, (0, right, 0, bottom))
        mask = F.pad(mask, (0, right, 0, bottom), value=ignore_index)
    top, left = (int(rng.integers(have - want + 1)) for want, have in zip(size, mask.shape, strict=True))
    place = (..., slice(top, top + size[0]), slice(left, left + size[1]))
    return image[place], mask[place]
