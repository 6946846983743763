"""What a detector reaches that looks at no pixel: the floor under every average precision.

It says the same of every image: an object of each class, of the mean box of its training objects, the commoner classes
the surer. Its masks are its boxes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dovetail.downstream.detect.average_precision import average_precision
from dovetail.downstream.detect.job import open_detection
from dovetail.downstream.labels.coco import CocoSet
from dovetail.downstream.labels.coco_object import CocoImage, run_length_of
from dovetail.downstream.labels.subsets import balanced_order, fraction_of


def mean_boxes(folder: Path, fraction: float, seed: int) -> tuple[dict[str, float], int]:
    """Return COCO's scores in [0, 1] as "box AP", "mask AP" and so on, and the number of labelled images.

    Args:
        folder: Of a COCO set with both parts.
        fraction: Share of the labelled images, those that fine-tuning takes with `seed`.
        seed: Of the order in which they are taken.
    """
    train, test, _ = open_detection(folder)
    labels = [sorted({one.label for one in image.objects}) for image in train.images]
    chosen = fraction_of(balanced_order(labels, seed), fraction)
    found = guesses(train.subset(list(chosen)), test)
    scores = {f"box {name}": value for name, value in average_precision(test, found, "bbox").items()}
    scores |= {f"mask {name}": value for name, value in average_precision(test, found, "segm").items()}
    return {name: round(value, 6) for name, value in scores.items()}, len(chosen)


def guesses(train: CocoSet, test: CocoSet) -> list[dict[str, Any]]:
    """Return the same detections for every test image, as COCO's result dictionaries."""
    sizes = {(image.width, image.height) for image in test.images}
    drawn = {size: drawn_boxes(train, *size) for size in sizes}
    return [
        {"image_id": image.id, "category_id": train.ids[label], **one}
        for image in test.images
        for label, one in drawn[image.width, image.height].items()
    ]


def drawn_boxes(train: CocoSet, width: int, height: int) -> dict[int, dict[str, Any]]:
    """Return by label what is said of an image of a size, boxes in its pixels."""
    corners: dict[int, list[tuple[float, ...]]] = {}
    for image in train.images:
        for one in image.objects:
            if one.has_area and not one.crowd:
                corners.setdefault(one.label, []).append(corners_of(one.box, image))
    total, found = sum(map(len, corners.values())), {}
    for label, known in corners.items():
        left, top, right, bottom = np.mean(known, axis=0) * (width, height, width, height)
        mask = np.zeros((height, width), dtype=np.uint8)
        mask[round(top) : round(bottom), round(left) : round(right)] = 1
        found[label] = {
            "bbox": [float(left), float(top), float(right - left), float(bottom - top)],
            "score": len(known) / total,
            "segmentation": run_length_of(mask),
        }
    return found


def corners_of(box: tuple[float, ...], image: CocoImage) -> tuple[float, ...]:
    """Return the left, top, right and bottom of a box in shares of the image."""
    left, top, width, height = box
    return left / image.width, top / image.height, (left + width) / image.width, (top + height) / image.height
