"""Datasets of images with boxes that are passed in Python (see `dovetail.downstream.labels.given`).

Shapes: N objects, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dovetail.downstream.labels.coco import CocoSet, object_of
from dovetail.downstream.labels.coco_object import CocoImage, CocoObject, run_length_of
from dovetail.downstream.labels.given import Given, names_in, open_given
from dovetail.downstream.progress import progress
from dovetail.errors import DataError

TARGETS = ("target", "targets", "objects", "annotations")


@dataclass(frozen=True)
class GivenImage(CocoImage):
    """An image of a dataset with its objects.

    Attributes:
        items: Items of the dataset.
        index: Index of the image among the items.
    """

    items: Given
    index: int

    def pixels(self, channels: int = 3) -> Tensor:
        """Return pixels [C, H, W] in 0 to 255."""
        return self.items.pixels(self.index, self.items.item(self.index), channels)


def given_objects(data: Any) -> tuple[CocoSet, CocoSet, str]:
    """Return the training and validation images of datasets with objects, and a note on the split.

    Labels keep their numbers as category ids. Label 0 is background in torchvision, and so is refused.

    Raises:
        DataError: A target has another form.
    """
    parts = open_given(data)
    read = [targets_of(part) for part in parts[:2]]
    ids = tuple(sorted({label for some in read for _, objects in some for label, *_ in objects}))
    names = categories_of(parts[0].dataset, ids)
    train, val = (as_coco(part, some, names, ids) for part, some in zip(parts[:2], read, strict=True))
    return train, val, parts[2]


Target = tuple[tuple[int, int], list[tuple[int, dict[str, Any]]]]
"""Height and width of an image, and for each object its label and its COCO annotation."""


def targets_of(items: Given) -> list[Target]:
    """Read all images with their objects."""
    found = []
    with progress(f"reading objects of {items.name}", len(items)) as advance:
        for index in range(len(items)):
            found.append(target_of(items, index))
            advance(1)
    return found


def categories_of(dataset: Any, ids: Sequence[int]) -> tuple[str, ...]:
    """Return the category names: of a COCO dataset of torchvision, by the attribute `classes`, or numbers."""
    known = getattr(getattr(dataset, "coco", None), "cats", {})
    classes = names_in(dataset)
    return tuple(
        str(known[one]["name"]) if one in known else classes[one] if one < len(classes) else str(one) for one in ids
    )


def as_coco(items: Given, read: Sequence[Target], names: tuple[str, ...], ids: tuple[int, ...]) -> CocoSet:
    """Return items with the targets that were read as a COCO dataset."""
    images = []
    for index, (size, found) in enumerate(read):
        objects: list[CocoObject] = [object_of(one, ids.index(label), size) for label, one in found]
        name = Path(items.called(index))
        images.append(GivenImage(index + 1, name, size[1], size[0], tuple(objects), items, index))
    return CocoSet(Path(items.name), tuple(images), names, ids, (items.mark(),))


def target_of(items: Given, index: int) -> Target:
    """Return the size and the objects of an item. Raise `DataError` if its target has another form."""
    item, called = items.item(index), items.called(index)
    target = item if isinstance(item, Mapping) and "boxes" in item else items.label(index, item, TARGETS, "a target")
    height, width = items.pixels(index, item).shape[1:]
    if isinstance(target, Mapping) and "boxes" in target:
        return (height, width), of_torchvision(target, called)
    if isinstance(target, list | tuple) and all(isinstance(one, Mapping) and "category_id" in one for one in target):
        found = [(int(one["category_id"]), {**one, "id": number}) for number, one in enumerate(target, 1)]
        return (height, width), found
    raise DataError(
        f"The target of {called} is a {type(target).__name__} of another form; return a dictionary with boxes [N, 4] "
        "and labels [N], or a list of COCO annotations."
    )


def of_torchvision(target: Mapping[str, Any], called: str) -> list[tuple[int, dict[str, Any]]]:
    """Return the objects of a target of torchvision's detectors."""
    boxes = torch.as_tensor(target["boxes"]).detach().cpu().double().reshape(-1, 4)
    labels = torch.as_tensor(target.get("labels", ())).detach().cpu().reshape(-1)
    masks = target.get("masks")
    if len(labels) != len(boxes) or (masks is not None and len(masks) != len(boxes)):
        raise DataError(
            f"The target of {called} has {len(boxes)} boxes and {len(labels)} labels; return one label, and with masks "
            "one mask, for each box."
        )
    if labels.dtype.is_floating_point or bool((labels < 1).any()):
        raise DataError(f"The target of {called} has labels below 1; number the classes from 1, as 0 is background.")
    crowds = torch.as_tensor(target.get("iscrowd", torch.zeros(len(boxes)))).reshape(-1)
    found = []
    for number, ((left, top, right, bottom), label) in enumerate(zip(boxes.tolist(), labels.tolist(), strict=True)):
        one: dict[str, Any] = {"id": number + 1, "bbox": [left, top, right - left, bottom - top]}
        if masks is not None:
            one["segmentation"] = run_length_of(np.asarray(torch.as_tensor(masks[number]).cpu()) > 0)
        found.append((int(label), {**one, "iscrowd": int(crowds[number])}))
    return found
