"""Which part of a COCO object lies inside its image, and a sentence on what is clipped or left out.

torchvision's matcher takes every anchor of an image for an object where a box touches none of them, so only what lies
inside the image may be learned from.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import faster_coco_eval.core.mask as coco_mask

if TYPE_CHECKING:
    from dovetail.downstream.labels.coco_object import CocoImage, CocoObject

Box = tuple[float, float, float, float]

LEAST_PX = 0.99  # of a box's sides: a pixel but for rounding; mmdetection leaves out what is smaller, too
SLACK_PX = 0.01  # how far an object may reach out of its image without being counted


def box_within(one: CocoObject, image: CocoImage) -> Box | None:
    """Return the part of a box inside its image as left, top, right, bottom; None where that is under a pixel."""
    left, top, width, height = one.box
    right, bottom = min(left + width, image.width), min(top + height, image.height)
    left, top = max(left, 0.0), max(top, 0.0)
    if right - left < LEAST_PX or bottom - top < LEAST_PX:
        return None
    return left, top, right, bottom


def reaches_out(one: CocoObject, image: CocoImage) -> bool:
    """Whether the box or a polygon of an object reaches beyond the image."""
    left, top, width, height = one.box
    parts: list[list[float]] = one.segmentation if isinstance(one.segmentation, list) else []
    across = [left, left + width, *(value for part in parts for value in part[::2])]
    down = [top, top + height, *(value for part in parts for value in part[1::2])]
    inside = min(*across, *down) >= -SLACK_PX
    return not (inside and max(across) <= image.width + SLACK_PX and max(down) <= image.height + SLACK_PX)


def mask_is_empty(one: CocoObject, image: CocoImage) -> bool:
    """Whether an object has a mask that holds no pixel of its image."""
    if isinstance(one.segmentation, list) and not reaches_out(one, image) and any(map(is_thick, one.segmentation)):
        return False  # drawing all polygons of a large set takes minutes
    coded = one.run_length(image.height, image.width)
    return coded is not None and int(coco_mask.area(coded)) == 0


def is_thick(points: Sequence[float]) -> bool:
    """Whether a polygon (x, y in turn) is over two pixels thick on average, so that it must hold one."""
    across, down = points[::2], points[1::2]
    twice = sum(across[i - 1] * down[i] - across[i] * down[i - 1] for i in range(len(across)))
    return abs(twice) / 2 > 2 * max(max(across) - min(across), max(down) - min(down), 1)
