"""Photometrics and resized crops against Pillow's results, in grey levels of 255."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from dovetail.views import photometric
from dovetail.views.plan import IMAGENET_MEAN, IMAGENET_STD
from dovetail.views.sampling import Box, resized_crop
from tests.golden.vectors import Comparison, Golden

LEVELS = 2  # Pillow rounds to 8 bits after every operation
BLUR_LEVELS = 3  # and after each of the three passes in both directions
# Pillow turns hue in steps of 1/255 of the circle: it cuts the hue of each pixel, and takes 256 steps for the circle
# where it wraps. So each pixel is turned by up to two steps less than asked for, or one more. Ours is compared at the
# turn that fits that pixel best, in quarters of a step, each of which moves a channel by up to 1.5 levels.
HUE_STEPS = [quarter / 4 for quarter in range(-8, 5)]
HUE_LEVELS = 3


def check(golden: Golden) -> Iterator[Comparison]:
    """Yield one comparison for every stored picture."""
    image = golden["image.uint8_chw"]
    for name, expected in golden.under("expected").items():
        operation, _, value = name.partition(".")
        if operation == "resized_crop":
            yield _levels(name, _resized(golden, image, value), expected)
        elif operation == "hflip":
            yield Comparison(name, _flipped(image), expected, tolerance=1e-6)
        elif operation == "normalised":
            ours = photometric.normalise(image[None] / 255, IMAGENET_MEAN, IMAGENET_STD)[0]
            yield Comparison(name, ours, expected)
        elif operation == "hue":
            yield _levels(name, _turned(image, value, expected), expected, HUE_LEVELS)
        else:
            levels = BLUR_LEVELS if "blur" in operation else LEVELS
            yield _levels(name, _augmented(image, *_parse(operation, value)), expected, levels)


def _parse(operation: str, value: str) -> tuple[str, float]:
    """Return the operation's own name and its value, from names such as "pil_gaussian_blur.radius_0.7"."""
    if operation.startswith("solarize_"):
        return "solarise", float(operation.removeprefix("solarize_")) / 255
    if operation == "grayscale_3ch":
        return "grey", 1.0
    if operation == "pil_gaussian_blur":
        return "blur", float(value.removeprefix("radius_"))
    return operation, float(value)


def _augmented(image: Tensor, operation: str, value: float) -> Tensor:
    """Return uint8 `image` [C, H, W] through the product's batched path, as float grey levels."""
    column = {
        "brightness": photometric.BRIGHTNESS,
        "contrast": photometric.CONTRAST,
        "saturation": photometric.SATURATION,
        "hue": photometric.HUE,
        "grey": photometric.GREY,
        "blur": photometric.SIGMA,
        "solarise": photometric.SOLARISE,
    }[operation]
    parameters = torch.tensor([photometric.IDENTITY])
    parameters[0, column] = value
    return photometric.apply(image[None] / 255, parameters)[0].mul(255).round()


def _turned(image: Tensor, value: str, expected: Tensor) -> Tensor:
    """Return the image with its hue turned, every pixel [C] by the turn within Pillow's rounding that fits best."""
    turn = int(float(value) * 255)  # the reference cuts it towards zero
    turned = torch.stack([_augmented(image, "hue", (turn + step) / 255) for step in HUE_STEPS])  # [T, C, H, W]
    best = (turned - expected).abs().amax(dim=1).argmin(dim=0)  # [H, W]
    return turned.gather(0, best.expand(1, *image.shape))[0]


def _resized(golden: Golden, image: Tensor, value: str) -> Tensor:
    interpolation, size = value.split(".")
    box = Box(*golden["crop.box_top_left_height_width"].tolist())
    assert interpolation in ("bicubic", "bilinear")
    return resized_crop(
        image, box, size_px=int(size), interpolation="bicubic" if interpolation == "bicubic" else "bilinear"
    )


def _flipped(image: Tensor) -> Tensor:
    """Return the mirrored image; views are square, so it comes in squares, the last ones sharing pixels."""
    _, height, width = image.shape
    side = min(height, width)
    whole = torch.zeros_like(image)
    for top in (*range(0, height - side, side), height - side):
        for left in (*range(0, width - side, side), width - side):
            box = Box(top, left, side, side)
            square = resized_crop(image, box, size_px=side, interpolation="bicubic", flipped=True)
            whole[:, top : top + side, width - left - side : width - left] = square
    return whole


def _levels(what: str, ours: Tensor, expected: Tensor, levels: int = LEVELS) -> Comparison:
    return Comparison(what, ours.float(), expected.float(), (levels + 0.1) / 255, scale=255.0, covers=expected)
