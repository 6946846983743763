"""Joint augmentation of training images and masks: random scale, crop, flips, colour distortion.

Shapes: H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dovetail.downstream.labels.labelled import Labelled


@dataclass(frozen=True)
class Augmentation:
    """Options for the augmentation of training images.

    Attributes:
        crop_px: Height and width of crops. Smaller images are padded with ignored pixels. None keeps whole images,
            which must have the same size.
        scale: Range of the random resize factor before the crop. (1, 1) disables it.
        flip_p: Probability of a horizontal flip.
        flip_vertical_p: Probability of a vertical flip, for images without a fixed orientation.
        within_px: Longest and shorter side that images are first resized to, keeping their aspect ratio.
        most_of_one_class: Draw a new crop, up to ten times, if a class covers this fraction of it or more.
        distort: Whether to distort brightness, contrast, saturation and hue as in SSD (see `distorted`).
    """

    crop_px: tuple[int, int] | None = None
    scale: tuple[float, float] = (1.0, 1.0)
    flip_p: float = 0.5
    flip_vertical_p: float = 0.0
    within_px: tuple[int, int] | None = None
    most_of_one_class: float = 1.0
    distort: bool = False


def augmented(item: Labelled, plan: Augmentation, ignore_index: int, rng: np.random.Generator) -> Labelled:
    """Augment an image and its mask with random numbers from `rng`."""
    image, mask = item.image, item.mask
    if plan.scale != (1.0, 1.0) or plan.within_px is not None:
        factor = factor_within(mask.shape, plan.within_px)
        factor *= rng.uniform(*plan.scale) if plan.scale != (1.0, 1.0) else 1.0
        size = scaled(mask.shape, factor)
        image = scaled_images(image[None], size)[0]
        mask = F.interpolate(mask[None, None].double(), size, mode="nearest-exact")[0, 0].long()
    if plan.crop_px is not None:
        image, mask = varied_crop(image, mask, plan, ignore_index, rng)
    if rng.random() < plan.flip_p:
        image, mask = image.flip(2), mask.flip(1)
    if rng.random() < plan.flip_vertical_p:
        image, mask = image.flip(1), mask.flip(0)
    if plan.distort:
        image = distorted(image, rng)
    return Labelled(image, mask)


def factor_within(size: Sequence[int], within_px: tuple[int, int] | None) -> float:
    """Return the resize factor that fits an image into the longest and the shorter side."""
    if within_px is None:
        return 1.0
    longest, shorter = within_px
    return min(longest / max(size), shorter / min(size))


def scaled(size: Sequence[int], factor: float) -> list[int]:
    """Multiply height and width by a factor. Halves are rounded up: 1024.5 for Cityscapes is 1025."""
    return [max(int(side * factor + 0.5), 1) for side in size]


def scaled_images(images: Tensor, size: list[int]) -> Tensor:
    """Resize images [B, C, H, W], uint8 or float32 in 0 to 255, bilinearly with antialiasing."""
    return as_before(F.interpolate(images.float(), size, mode="bilinear", antialias=True), images)


def as_before(values: Tensor, images: Tensor) -> Tensor:
    """Return float32 values in 0 to 255 in the type of the images that they were computed from."""
    return values if images.is_floating_point() else values.round().to(torch.uint8)


def brought_within(images: Tensor, within_px: tuple[int, int] | None) -> Tensor:
    """Resize images [B, C, H, W] to fit into the two sides. None returns them unchanged."""
    factor = factor_within(images.shape[2:], within_px)
    size = scaled(images.shape[2:], factor)
    if size == list(images.shape[2:]):
        return images
    return scaled_images(images, size)


def varied_crop(
    image: Tensor, mask: Tensor, plan: Augmentation, ignore_index: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return a random crop: the first of up to ten in which no class is too dominant."""
    assert plan.crop_px is not None
    for _ in range(10):
        crop = cropped(image, mask, plan.crop_px, ignore_index, rng)
        if plan.most_of_one_class >= 1:
            break
        counts = torch.unique(crop[1][crop[1] != ignore_index], return_counts=True)[1]
        if len(counts) > 1 and int(counts.max()) < plan.most_of_one_class * int(counts.sum()):
            break
    return crop


def distorted(image: Tensor, rng: np.random.Generator) -> Tensor:
    """Distort the colours of an RGB image [3, H, W] (Liu et al., 2016, https://arxiv.org/abs/1512.02325).

    Each with probability 1/2: brightness by up to 32 of 255, saturation by 0.5 to 1.5, hue by up to a tenth of the
    circle, and, before or after these two, contrast by 0.5 to 1.5. Saturation and hue are changed with 8 bits.
    """
    values = image.float()
    if rng.random() < 0.5:
        values = (values + rng.uniform(-32, 32)).clamp(0, 255)
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    first = rng.random() < 0.5
    if first:
        values = (values * contrast).clamp(0, 255)
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    turn = int(rng.integers(-18, 19)) * 256 / 180 if rng.random() < 0.5 else 0.0
    if saturation != 1.0 or turn:
        picture = Image.fromarray(values.round().to(torch.uint8).permute(1, 2, 0).numpy())
        hue, colour, value = picture.convert("HSV").split()
        bands = [
            Image.fromarray(((np.asarray(hue).astype(np.int32) + round(turn)) % 256).astype(np.uint8)),
            Image.fromarray((np.asarray(colour) * saturation).clip(0, 255).astype(np.uint8)),
            value,
        ]
        changed = np.array(Image.merge("HSV", bands).convert("RGB"))
        values = torch.from_numpy(changed).permute(2, 0, 1).float()
    if not first:
        values = (values * contrast).clamp(0, 255)
    return as_before(values, image)


def cropped(
    image: Tensor, mask: Tensor, size: tuple[int, int], ignore_index: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return a random crop. The padding of smaller images is black and ignored."""
    bottom, right = (max(want - have, 0) for want, have in zip(size, mask.shape, strict=True))
    if bottom or right:
        image = F.pad(image, (0, right, 0, bottom))
        mask = F.pad(mask, (0, right, 0, bottom), value=ignore_index)
    top, left = (int(rng.integers(have - want + 1)) for want, have in zip(size, mask.shape, strict=True))
    place = (..., slice(top, top + size[0]), slice(left, left + size[1]))
    return image[place], mask[place]
