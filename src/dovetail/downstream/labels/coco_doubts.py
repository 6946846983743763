"""Warnings about a COCO dataset: objects at image borders, empty masks, boxes in another format."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dovetail.downstream.labels.coco import CocoSet
from dovetail.downstream.labels.coco_object import Box, CocoImage, CocoObject, box_within, mask_is_empty, reaches_out
from dovetail.errors import counted

FEWEST_BOXES = 4  # fewer boxes are not sufficient to detect another format
LEAST_SHARE = 0.05  # fraction of misfitting boxes from which another format is considered
SLACK_PX = 1.5  # tolerance between a box and its image or mask
READINGS: Mapping[str, Callable[[Box], Box]] = {
    "left, top, right, bottom": lambda box: (box[0], box[1], box[2] - box[0], box[3] - box[1]),
    "centre x, centre y, width, height": lambda box: (box[0] - box[2] / 2, box[1] - box[3] / 2, box[2], box[3]),
    "top, left, height, width": lambda box: (box[1], box[0], box[3], box[2]),
}


def doubts_about_boxes(data: CocoSet) -> list[str]:
    """Return a warning if boxes do not fit their images or masks, but would in another box format."""
    pairs = [(one, image) for image in data.images for one in image.objects if not one.crowd and any(one.box)]
    if len(pairs) < FEWEST_BOXES:
        return []
    if all(max(one.box) <= 1 and min(image.width, image.height) > 2 for one, image in pairs):
        return [
            f"{data.path}: all boxes lie between 0 and 1; COCO boxes are in pixels, so multiply them by image sizes."
        ]
    misfits = sum(not fits(one.box, one, image) for one, image in pairs)
    if misfits < max(LEAST_SHARE * len(pairs), 1):
        return []
    for name, reading in READINGS.items():
        if all(fits(reading(one.box), one, image) for one, image in pairs):
            return [
                f"{data.path}: {misfits} of {len(pairs)} boxes do not fit their images or masks, but all do if they "
                f"are {name}; COCO boxes are left, top, width, height; convert them."
            ]
    return []


def objects_at_edges(data: CocoSet, *, with_masks: bool, learned: bool) -> str:
    """Return a sentence about objects that are partly outside their images, or an empty string. Crowds are ignored.

    Args:
        data: Dataset.
        with_masks: Whether to check masks, too.
        learned: Whether the objects are for training. Objects for evaluation are not clipped, as in COCO.
    """
    beyond = small = empty = 0
    for image in data.images:
        for one in image.objects:
            if one.crowd:
                continue
            if box_within(one, image) is None:
                small += 1
            elif with_masks and mask_is_empty(one, image):
                empty += 1
            elif reaches_out(one, image):
                beyond += 1
    fate = "left out of training" if learned else "counted as missed"
    parts = (
        (beyond, "clipped to the image" if learned else "partly outside the image and evaluated as annotated"),
        (small, f"{fate}, because less than one pixel of the box is inside the image"),
        (empty, f"{fate}, because no pixel of the mask is inside the image"),
    )
    told = [f"{counted(number, 'object')} {'is' if number == 1 else 'are'} {what}" for number, what in parts if number]
    return f"{data.path}: {'; '.join(told)}." if told else ""


def undrawn_masks(data: CocoSet) -> str:
    """Return a sentence about objects with an empty mask, or an empty string."""
    count = sum(mask_is_empty(one, image) for image in data.images for one in image.objects)
    return f"{data.path}: {counted(count, 'mask')} without a pixel inside the image skipped." if count else ""


def fits(box: Box, one: CocoObject, image: CocoImage) -> bool:
    """Return whether a box is inside its image and contains the object's polygons."""
    left, top, width, height = box
    if width <= 0 or height <= 0 or min(left, top) < -SLACK_PX:
        return False
    if left + width > image.width + SLACK_PX or top + height > image.height + SLACK_PX:
        return False
    if not isinstance(one.segmentation, list):
        return True
    across, down, far_across, far_down = extent_of_polygons(one.segmentation)
    sides = (across - left, down - top, far_across - left - width, far_down - top - height)
    return max(map(abs, sides)) <= max(SLACK_PX, 0.2 * max(width, height))


def extent_of_polygons(parts: list[list[float]]) -> Box:
    """Return left, top, right and bottom of polygons."""
    across = [value for part in parts for value in part[::2]]
    down = [value for part in parts for value in part[1::2]]
    return min(across), min(down), max(across), max(down)
