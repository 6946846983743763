"""Checks the structure of a COCO JSON file and its objects. Each fault is a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict

import faster_coco_eval.core.mask as coco_mask
from msgspec import Meta

from dovetail.data.reading.decode import MAX_PIXELS
from dovetail.downstream.labels.coco_object import Box, CocoImage, CocoObject, box_within, mask_is_empty
from dovetail.files.schema import fits, misfits, quoted

MOST_NAME_BYTES, MOST_PATH_BYTES = 255, 1000  # common limits of file systems, and of systems with the folder's path
FARTHEST_PX = 1e6  # coordinates beyond this make the rasteriser allocate gigabytes

Side = Annotated[int, Meta(ge=1)]
Place = Annotated[float, Meta(gt=-FARTHEST_PX, lt=FARTHEST_PX)]
FourPlaces = Annotated[list[Place], Meta(min_length=4, max_length=4)]
Polygons = list[list[Place]]
Amount = Annotated[float, Meta(ge=0, le=1e30)] | bool | None


class Lists(TypedDict):
    """Required fields of a file. Other fields are allowed."""

    images: list[Any]
    annotations: list[Any]
    categories: list[Any]


class Image(TypedDict):
    """An entry of images."""

    id: int
    file_name: str
    width: Side
    height: Side


class Category(TypedDict):
    """An entry of categories. A numeric name is converted to a string."""

    id: int
    name: Any


class RunLengths(TypedDict):
    """A run-length mask, compressed or not."""

    counts: str | list[int]
    size: list[int]


def faults_of_lists(path: Path, content: Mapping[str, Any]) -> Iterator[str]:
    """Yield the faults of images, categories and annotations."""
    for key, kind in (("images", Image), ("categories", Category)):
        for one in content[key]:
            for odd in misfits(one, kind):
                yield f"{path}: an entry of {key} {odd} ({quoted(one)})."
    yield from faults_of_names(path, content["images"])
    for key in ("categories", "images"):
        if not content[key]:
            yield f"{path} has no {key}; add the list of {key}."
    named = [one for key in ("images", "categories") for one in content[key] if isinstance(one, dict)]
    wrong = {repr(one.get("id")) for one in named if not is_whole(one.get("id"))}  # report once, not per annotation
    images = [one for one in content["images"] if isinstance(one, dict) and is_whole(one.get("id"))]
    sizes = {one["id"]: (one.get("height"), one.get("width")) for one in images}
    if len(sizes) < len(images):
        yield f"{path} has several images with the same id; use unique ids."
    known = [one["id"] for one in content["categories"] if isinstance(one, dict) and is_whole(one.get("id"))]
    categories = set(known)
    if len(categories) < len(known):
        yield f"{path} has several categories with the same id; use unique ids."
    for one in content["annotations"]:
        if not isinstance(one, dict) or not is_whole(one.get("id")):
            yield f"{path}: an annotation has no id that is a whole number ({quoted(one)})."
            continue
        name, category, image = quoted(one["id"]), one.get("category_id"), one.get("image_id")
        if not (is_whole(category) and category in categories) and repr(category) not in wrong:
            yield f"{path}: annotation {name} has category {quoted(category)}, which is not in the list."
        if not is_whole(image) or image not in sizes:
            if repr(image) not in wrong:
                yield f"{path}: annotation {name} belongs to image {quoted(image)}, which is not in the list."
            continue
        yield from faults_of_shape(path, one, sizes[image])


def faults_of_names(path: Path, images: list[Any]) -> Iterator[str]:
    """Yield the faults of file names, which no file system would even look for."""
    for one in images:
        name = one.get("file_name") if isinstance(one, dict) else None
        if not isinstance(name, str):
            continue
        sizes = [len(part.encode("utf-8", "surrogatepass")) for part in name.replace("\\", "/").split("/")]
        if max(sizes) > MOST_NAME_BYTES or sum(sizes) + len(sizes) > MOST_PATH_BYTES:
            yield (
                f"{path}: the file name {quoted(name)} has {len(name):,} characters, more than file systems support; "
                "shorten it."
            )


WHOLE = {
    "images": ("id", "width", "height"),
    "categories": ("id",),
    "annotations": ("id", "image_id", "category_id", "iscrowd"),
}


def make_whole(content: Mapping[str, Any]) -> None:
    """Convert numbers such as 3.0, which spreadsheets write for integers, to integers in place."""
    for key, fields in WHOLE.items():
        for one in content[key]:
            if isinstance(one, dict):
                for field in fields:
                    value = one.get(field)
                    if isinstance(value, float) and value.is_integer():
                        one[field] = int(value)


def faults_of_shape(path: Path, one: Mapping[str, Any], size: tuple[Any, Any]) -> Iterator[str]:
    """Yield the faults of an annotation's box and mask. `size` is the height and width of its image."""
    name, box, mask = quoted(one["id"]), one.get("bbox"), one.get("segmentation")
    if not box and not mask:
        yield f"{path}: annotation {name} has neither a box nor a mask."
    for field in ("area", "iscrowd"):
        if not fits(one.get(field), Amount):
            yield f"{path}: annotation {name} has {field} {quoted(one[field])}, expected a number from 0."
    if box and not fits(box, FourPlaces):
        yield f"{path}: annotation {name} has the box {quoted(box)}; a box is left, top, width, height."
    if isinstance(mask, dict):
        yield from faults_of_run_lengths(path, name, mask, size)
    elif mask and not isinstance(mask, list):
        yield f"{path}: the mask of annotation {name} is a {type(mask).__name__}; use polygons or run-lengths."
    elif mask and not (fits(mask, Polygons) and all(len(part) % 2 == 0 for part in mask)):
        yield f"{path}: a polygon of annotation {name} is not a list of alternating x and y."


def faults_of_run_lengths(path: Path, name: str, mask: Mapping[str, Any], size: tuple[Any, Any]) -> Iterator[str]:
    """Yield the faults of the run-lengths of annotation `name`."""
    odd = next(misfits(mask, RunLengths), None)
    if odd is not None:
        yield f"{path}: the mask of annotation {name} {odd}; run-lengths have counts and size."
    elif mask["size"] != list(size):
        yield (
            f"{path}: the run-lengths of annotation {name} are for {quoted(mask['size'])} (height, width), but its "
            f"image is {list(size)}."
        )
    else:
        try:
            if size[0] * size[1] > MAX_PIXELS:  # before allocating memory
                raise ValueError(f"{size[0]} x {size[1]} pixels are too many")
            coded = coco_mask.frPyObjects(mask, *size) if isinstance(mask["counts"], list) else mask
            coco_mask.decode(coded)
        except (ValueError, TypeError, RuntimeError, MemoryError) as error:
            yield f"{path}: the run-lengths of annotation {name} cannot be decoded ({str(error)[:80].rstrip('.')})."


def is_whole(value: Any) -> bool:
    """Return whether a value is an integer."""
    return fits(value, int)


def faults_of_objects_in(image: CocoImage) -> Iterator[str]:
    """Yield a sentence for each fault of an image's objects."""
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
    """Return the fraction of an object's mask inside its box (all pixels that the box touches)."""
    mask = one.mask(image.height, image.width)
    total = int(mask.sum())
    return float(mask[one.touched].sum()) / total if total else 1.0
