"""Sampling of views: crops, flips, query patches and masks, drawn before an image is decoded.

Boxes are integers `(top, left, height, width)` in pixels of the image. Random resized crops follow torchvision;
the second view's overlap with the first follows SlotCon (https://arxiv.org/abs/2205.15288, official code).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from dovetail.errors import DataError
from dovetail.sizes import Size, sides
from dovetail.views import photometric
from dovetail.views.masks import draw_mask
from dovetail.views.plan import PointSpec, QuerySpec, ViewPlan

_TRIES = 10
# Minimum number of pixels of a reduced image per pixel of the view. Views of 224 px then differ from those of the full
# image by half a grey level. With 1 they differ by a whole one, and by up to 19 at sharp edges (speed_decoding.md).
SHRINK_MARGIN = 1.5
SHRINKS = (1, 2, 4, 8)  # supported by JPEG decoders


class Box(NamedTuple):
    """A crop in pixels of the image."""

    top: int
    left: int
    height: int
    width: int

    def intersection(self, other: Box) -> int:
        """Return the overlap area in pixels, 0 without overlap."""
        height = min(self.top + self.height, other.top + other.height) - max(self.top, other.top)
        width = min(self.left + self.width, other.left + other.width) - max(self.left, other.left)
        return max(height, 0) * max(width, 0)


def random_box(
    rng: np.random.Generator,
    *,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> tuple[Box, float]:
    """Return a random resized crop of a height x width image, and its target area in pixels.

    The area is uniform in `scale` of the image, and the log of the width-to-height ratio is uniform. After ten tries
    that do not fit, it is the largest central crop with an allowed ratio (torchvision's RandomResizedCrop).
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_TRIES):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(low, high))
        box_width, box_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < box_width <= width and 0 < box_height <= height:
            top, left = rng.integers(height - box_height + 1), rng.integers(width - box_width + 1)
            return Box(int(top), int(left), box_height, box_width), area
    return _central_box(height, width, ratio)


def _central_box(height: int, width: int, ratio: tuple[float, float]) -> tuple[Box, float]:
    box_width, box_height = width, height
    if width / height < ratio[0]:
        box_height = max(1, round(width / ratio[0]))
    elif width / height > ratio[1]:
        box_width = max(1, round(height * ratio[1]))
    box = Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)
    return box, float(box_height * box_width)


def accepts(first: Box, second: Box, *, target_area: float, min_overlap: float) -> bool:
    """Return whether `second` shares at least `min_overlap` of its (unrounded) `target_area` with `first`."""
    return first.intersection(second) >= min_overlap * target_area


@dataclass(frozen=True)
class Queries:
    """Random draws of ADCLR's query patches: S boxes and flips, photometrics [G, S, NUM_PARAMETERS].

    G is the number of global views if they are independent, otherwise 1.
    """

    boxes: list[Box]
    flipped: list[bool]
    photometrics: np.ndarray


@dataclass(frozen=True)
class Draw:
    """Random draws of the V views of an image, G of them global.

    Attributes:
        boxes: V crops.
        flipped: V flips.
        photometrics: [V, NUM_PARAMETERS] float32.
        queries: Draws of ADCLR's queries; None without them.
        masks: G masks [h, w] bool; empty without masking.
        points: [1 or G, N, 2] in [0, 1), positions of points in their region (`place_points`); None without them.
        picks: [V, S] float32 in [0, 1), picks of segments; None without them.
    """

    boxes: list[Box]
    flipped: list[bool]
    photometrics: np.ndarray
    queries: Queries | None
    masks: list[np.ndarray]
    points: np.ndarray | None = None
    picks: np.ndarray | None = None


def draw_views(rng: np.random.Generator, plan: ViewPlan, *, height: int, width: int, epoch: int = 0) -> Draw:
    """Return the draws of `plan` in `epoch` for an image of height x width pixels."""
    boxes = _draw_boxes(rng, plan, height, width)
    flipped = [bool(rng.random() < spec.flip_p) for spec in plan.views]
    photometrics = np.stack([photometric.draw(rng, spec.photometric) for spec in plan.views])
    global_specs = [spec for spec in plan.views if spec.role == "global"]
    queries = None
    if plan.queries is not None:
        queries = _draw_queries(rng, plan.queries, num_global=len(global_specs), height=height, width=width)
    masks: list[np.ndarray] = []
    if plan.masks is not None:
        for spec in global_specs:
            rows, columns = (side // plan.masks.patch_px for side in spec.sides)
            mask = draw_mask(rng, plan.masks, height=rows, width=columns)
            masks.append(mask if epoch >= plan.masks.start_epoch else np.zeros_like(mask))
    # Draw points and picks last, so that the views of an image are the same with and without them.
    points = None if plan.points is None else _draw_points(rng, plan.points, num_global=len(global_specs))
    picks = None
    if plan.segments is not None:
        picks = rng.random((len(plan.views), plan.segments.count), dtype=np.float32)
    return Draw(boxes, flipped, photometrics, queries, masks, points, picks)


def _draw_boxes(rng: np.random.Generator, plan: ViewPlan, height: int, width: int) -> list[Box]:
    boxes: list[Box] = []
    for number, spec in enumerate(plan.views):
        box, area = random_box(rng, height=height, width=width, scale=spec.scale, ratio=spec.crop_ratio)
        if number == 1 and plan.min_overlap > 0:
            for _ in range(plan.overlap_tries):
                if accepts(boxes[0], box, target_area=area, min_overlap=plan.min_overlap):
                    break
                # The last try is always accepted.
                box, area = random_box(rng, height=height, width=width, scale=spec.scale, ratio=spec.crop_ratio)
        boxes.append(box)
    return boxes


def _draw_queries(rng: np.random.Generator, spec: QuerySpec, *, num_global: int, height: int, width: int) -> Queries:
    boxes = [
        random_box(rng, height=height, width=width, scale=spec.scale, ratio=spec.ratio)[0] for _ in range(spec.count)
    ]
    flipped = [bool(rng.random() < spec.flip_p) for _ in range(spec.count)]
    sets = num_global if spec.independent else 1
    drawn = [[photometric.draw(rng, spec.photometric) for _ in range(spec.count)] for _ in range(sets)]
    return Queries(boxes, flipped, np.array(drawn, dtype=np.float32))


def _draw_points(rng: np.random.Generator, spec: PointSpec, *, num_global: int) -> np.ndarray:
    return rng.random((1 if spec.region == "overlap" else num_global, spec.count, 2))


def needed_shrink(draw: Draw, plan: ViewPlan) -> int:
    """Return the divisor 1, 2, 4 or 8 by which the decoder may reduce the image without affecting any view.

    Every crop keeps at least 1.5 times the pixels of its view in both directions. An image of one or two megapixels is
    decoded at full size, and one of a hundred megapixels is not.
    """
    pairs = [(box, spec.sides) for box, spec in zip(draw.boxes, plan.views, strict=True)]
    if plan.queries is not None and draw.queries is not None:
        pairs += [(box, sides(plan.queries.size_px)) for box in draw.queries.boxes]
    spare = min(
        min(box.height / (height * SHRINK_MARGIN), box.width / (width * SHRINK_MARGIN))
        for box, (height, width) in pairs
    )
    return max(shrink for shrink in SHRINKS if shrink == 1 or spare >= shrink)


def shrink_of(pixels: Tensor, source_px: tuple[int, int]) -> int:
    """Return the divisor by which `pixels` [C, H, W] are smaller than their image of (width, height) `source_px`."""
    for shrink in SHRINKS:
        if tuple(pixels.shape[1:]) == tuple(-(-side // shrink) for side in source_px[::-1]):
            return shrink
    height, width = pixels.shape[1:]
    raise DataError(
        f"The decoded image has {width} x {height} pixels, expected {source_px[0]} x {source_px[1]}; do not change "
        "images while they are read."
    )


def on_grid(draw: Draw, shrink: int, source_px: tuple[int, int]) -> Draw:
    """Return `draw` with all boxes rounded to whole pixels of the image reduced by `shrink`.

    Views then match their boxes exactly: half a pixel of an image reduced by 8 is four pixels of the image.
    """
    if shrink == 1:
        return draw
    width, height = source_px

    def rounded(box: Box) -> Box:
        top, bottom = (_rounded(edge, shrink, height) for edge in (box.top, box.top + box.height))
        left, right = (_rounded(edge, shrink, width) for edge in (box.left, box.left + box.width))
        return Box(top, left, bottom - top, right - left)

    queries = draw.queries and replace(draw.queries, boxes=[rounded(box) for box in draw.queries.boxes])
    return replace(draw, boxes=[rounded(box) for box in draw.boxes], queries=queries)


def _rounded(edge: int, shrink: int, side: int) -> int:
    # The last pixel of the reduced image may be partly outside, and is then dropped.
    return min(round(edge / shrink), side // shrink) * shrink


def resized_crop(
    pixels: Tensor,
    box: Box,
    *,
    size_px: Size,
    interpolation: Literal["bilinear", "bicubic"],
    flipped: bool = False,
    shrink: int = 1,
) -> Tensor:
    """Return the crop `box` of `pixels` [C, H, W], resized with antialiasing to [C, h, w], then mirrored.

    Pixels are uint8, or float32 in [0, 255].

    Args:
        pixels: The image, or a reduced version of it.
        box: Crop in pixels of the image.
        size_px: Size of the result: the side of a square, or (h, w).
        interpolation: Filter, within one or two grey levels of Pillow's filter with the same name.
        flipped: Mirror left to right.
        shrink: Divisor by which `pixels` are smaller than the image; the box is on their grid (`on_grid`).
    """
    top, left = box.top // shrink, box.left // shrink
    bottom, right = top + box.height // shrink, left + box.width // shrink
    crop = pixels[None, :, top:bottom, left:right]
    resized = torch.nn.functional.interpolate(crop, size=sides(size_px), mode=interpolation, antialias=True)[0]
    if resized.is_floating_point():  # uint8 values are already clipped after a bicubic filter
        resized = resized.clamp(0, 255)
    return resized.flip(2) if flipped else resized
