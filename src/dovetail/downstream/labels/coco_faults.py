"""What can be wrong with the structure of a COCO JSON file and with its objects, in sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import faster_coco_eval.core.mask as coco_mask

from dovetail.data.reading.decode import MAX_PIXELS
from dovetail.downstream.labels.coco_object import Box, CocoImage, CocoObject, box_within, mask_is_empty

FARTHEST_PX = 1e6  # what lies farther out makes the rasteriser ask for gigabytes


def faults_of_lists(path: Path, content: Mapping[str, Any]) -> Iterator[str]:
    """Yield the faults among images, categories and annotations."""
    for key, needed in (("images", ("id", "file_name", "width", "height")), ("categories", ("id", "name"))):
        for one in content[key]:
            yield from faults_of_entry(path, key, one, needed)
    for key, what in (("categories", "category"), ("images", "image")):
        if not content[key]:
            yield f"{path} names no {what}; add the list of {key}."
    named = [one for key in ("images", "categories") for one in content[key] if isinstance(one, dict)]
    wrong = {repr(one.get("id")) for one in named if not is_whole(one.get("id"))}  # told once, not for each annotation
    images = [one for one in content["images"] if isinstance(one, dict) and is_whole(one.get("id"))]
    sizes = {one["id"]: (one.get("height"), one.get("width")) for one in images}
    if len(sizes) < len(images):
        yield f"{path} has several images of one id; give each its own."
    known = [one["id"] for one in content["categories"] if isinstance(one, dict) and is_whole(one.get("id"))]
    categories = set(known)
    if len(categories) < len(known):
        yield f"{path} has several categories of one id; give each its own."
    for one in content["annotations"]:
        if not isinstance(one, dict) or not is_whole(one.get("id")):
            yield f"{path}: an annotation has no id that is a whole number ({str(one)[:80]})."
            continue
        category, image = one.get("category_id"), one.get("image_id")
        if not (is_whole(category) and category in categories) and repr(category) not in wrong:
            yield f"{path}: annotation {one['id']} has category {category}, which is not in the list."
        if not is_whole(image) or image not in sizes:
            if repr(image) not in wrong:
                yield f"{path}: annotation {one['id']} belongs to image {image}, which is not in the list."
            continue
        yield from faults_of_shape(path, one, sizes[image])


WHOLE = {
    "images": ("id", "width", "height"),
    "categories": ("id",),
    "annotations": ("id", "image_id", "category_id", "iscrowd"),
}


def make_whole(content: Mapping[str, Any]) -> None:
    """Turn numbers such as 3.0, which tables write for whole ones, into whole numbers in place."""
    for key, fields in WHOLE.items():
        for one in content[key]:
            if isinstance(one, dict):
                for field in fields:
                    value = one.get(field)
                    if isinstance(value, float) and value.is_integer():
                        one[field] = int(value)


def faults_of_entry(path: Path, key: str, one: Any, needed: tuple[str, ...]) -> Iterator[str]:
    """Yield what is wrong with an entry of images or categories."""
    lacking = [field for field in needed if not isinstance(one, dict) or field not in one]
    if lacking:
        yield f"{path}: an entry of {key} has no {lacking[0]} ({str(one)[:80]})."
        return
    if key == "images" and not isinstance(one["file_name"], str):
        yield f"{path}: an entry of {key} has file_name {one['file_name']!r}, which is no text ({str(one)[:80]})."
    for field in ("id", "width", "height"):
        if field in needed and not (is_whole(one[field]) and (field == "id" or one[field] > 0)):
            yield f"{path}: an entry of {key} has {field} {one[field]!r}, which is no whole number ({str(one)[:80]})."


def faults_of_shape(path: Path, one: Mapping[str, Any], size: tuple[Any, Any]) -> Iterator[str]:
    """Yield what is wrong with an annotation's box and mask; `size` is its image's height and width."""
    box, mask = one.get("bbox"), one.get("segmentation")
    if not box and not mask:
        yield f"{path}: annotation {one['id']} has neither a box nor a mask."
    for field, default in (("area", None), ("iscrowd", 0)):
        if not is_amount(one.get(field, default)):
            yield f"{path}: annotation {one['id']} has {field} {one[field]!r}, which is no number of at least 0."
    if box and not (isinstance(box, list) and len(box) == 4 and are_places(box)):
        yield f"{path}: annotation {one['id']} has the box {str(box)[:60]}; a box is left, top, width, height."
    if isinstance(mask, dict):
        yield from faults_of_run_lengths(path, one["id"], mask, size)
    elif mask and not isinstance(mask, list):
        yield f"{path}: the mask of annotation {one['id']} is a {type(mask).__name__}; give polygons or run-lengths."
    elif mask and not all(isinstance(part, list) and len(part) % 2 == 0 and are_places(part) for part in mask):
        yield f"{path}: a polygon of annotation {one['id']} is no list of x, y in turn."


def faults_of_run_lengths(path: Path, name: int, mask: Mapping[str, Any], size: tuple[Any, Any]) -> Iterator[str]:
    """Yield what is wrong with the run-lengths of annotation `name`."""
    if not ({"counts", "size"} <= set(mask)):
        yield f"{path}: the run-lengths of annotation {name} lack counts or size."
    elif mask["size"] != list(size):
        yield (
            f"{path}: the run-lengths of annotation {name} are for {mask['size']} (height, width), but its image is "
            f"{list(size)}."
        )
    else:
        try:
            if size[0] * size[1] > MAX_PIXELS:  # before memory is taken for them
                raise ValueError(f"{size[0]} x {size[1]} pixels are too many")
            coded = coco_mask.frPyObjects(mask, *size) if isinstance(mask["counts"], list) else mask
            coco_mask.decode(coded)
        except (ValueError, TypeError, RuntimeError, MemoryError) as error:
            yield f"{path}: the run-lengths of annotation {name} cannot be decoded ({str(error)[:80].rstrip('.')})."


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_amount(value: Any) -> bool:
    """Whether a value is a number of at least 0, or left out."""
    return value is None or (isinstance(value, int | float) and 0 <= value < math.inf)


def are_places(values: list[Any]) -> bool:
    """Whether values are numbers that an image can have, in pixels; quick, for there are millions of them."""
    try:
        sane = math.isfinite(sum(values)) and -FARTHEST_PX < min(values, default=0) <= max(values, default=0)
        return bool(sane and max(values, default=0) < FARTHEST_PX)
    except TypeError:
        return False


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
