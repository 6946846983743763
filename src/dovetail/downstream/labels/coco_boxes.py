"""What a COCO set's boxes can be other than left, top, width and height, and objects that contradict themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from dovetail.downstream.labels.coco_extent import box_within, mask_is_empty

if TYPE_CHECKING:
    from dovetail.downstream.labels.coco_object import CocoImage, CocoObject

Box = tuple[float, float, float, float]

FEWEST_BOXES = 4  # fewer say nothing about how they are meant
LEAST_SHARE = 0.05  # of boxes that do not fit before another meaning is looked for
SLACK_PX = 1.5  # by which a box may miss its image or its mask
READINGS: Mapping[str, Callable[[Box], Box]] = {
    "left, top, right, bottom": lambda box: (box[0], box[1], box[2] - box[0], box[3] - box[1]),
    "centre x, centre y, width, height": lambda box: (box[0] - box[2] / 2, box[1] - box[3] / 2, box[2], box[3]),
    "top, left, height, width": lambda box: (box[1], box[0], box[3], box[2]),
}


def fits(box: Box, one: CocoObject, image: CocoImage) -> bool:
    """Whether a box lies inside its image and, where the object has polygons, around them."""
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
    """Return the left, top, right and bottom of polygons."""
    across = [value for part in parts for value in part[::2]]
    down = [value for part in parts for value in part[1::2]]
    return min(across), min(down), max(across), max(down)


def faults_of_objects_in(image: CocoImage) -> Iterator[str]:
    """Yield what is wrong with the objects of an image, one sentence for each fault."""
    seen: dict[tuple[int, Box], int] = {}
    for one in image.objects:
        called = f"{image.path}: annotation {one.id}"
        width, height = one.box[2:]
        if not one.has_area:
            yield f"{called} has a box of no area, {list(one.box)}; it is not learned from."
            continue
        if box_within(one, image) is None:
            out = one.box[0] >= image.width or one.box[1] >= image.height or one.box[0] + width <= 0
            out = out or one.box[1] + height <= 0
            where = "that lies outside of the image" if out else "of less than a pixel in the image"
            yield f"{called} has a box {where}, {list(one.box)}; it is not learned from."
            continue
        if mask_is_empty(one, image):
            yield f"{called} has a mask without a pixel inside the image; it is not learned from."
        elif one.segmentation is not None and (share := share_of_mask_in_box(one, image)) < 0.5:
            yield f"{called} has a mask of which {1 - share:.0%} lies outside its box, {list(one.box)}; correct either."
        if one.area < 1 or one.area > width * height * 1.1 + 4:
            yield f"{called} has area {one.area:g} in a box of {width * height:g} pixels; APs, APm and APl go by area."
        twin = seen.setdefault((one.label, one.box), one.id)
        if twin != one.id and not one.crowd:
            yield f"{called} repeats annotation {twin}, class and box; remove one."


def share_of_mask_in_box(one: CocoObject, image: CocoImage) -> float:
    """Return how much of an object's mask lies inside its box, by the pixels that the box touches."""
    mask = one.mask(image.height, image.width)
    total = int(mask.sum())
    return float(mask[one.touched].sum()) / total if total else 1.0
