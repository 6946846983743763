"""A tiny COCO set on disk with the format's real quirks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import faster_coco_eval.core.mask as coco_mask
import numpy as np
from PIL import Image

SIDE = 40


def write_coco(root: Path) -> Path:
    """Write annotations/instances_{train,val}2017.json and images in train2017/ and val2017/; return `root`.

    Training image 1 has a polygon in two parts, a smaller object on it, a crowd, a box of no area and a polygon of two
    points; image 2 nothing; image 3 a compressed mask and an annotation without box and area.
    """
    write_split(root, "train2017", train_content())
    write_split(root, "val2017", train_content())
    return root


def write_split(root: Path, split: str, content: dict[str, Any]) -> None:
    """Write one split's images and annotations."""
    (root / split).mkdir(parents=True, exist_ok=True)
    (root / "annotations").mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for image in content["images"]:
        pixels = rng.integers(0, 80, (image["height"], image["width"], 3), dtype=np.uint8)
        for one in content["annotations"]:
            if one["image_id"] == image["id"] and "bbox" in one:
                left, top, width, height = (int(value) for value in one["bbox"])
                pixels[top : top + height, left : left + width, one["category_id"] % 3] = 230
        Image.fromarray(pixels).save(root / split / image["file_name"])
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def square(left: float, top: float, side: float) -> list[float]:
    """Return a polygon's x, y in turn."""
    return [left, top, left + side, top, left + side, top + side, left, top + side]


def train_content() -> dict[str, Any]:
    """Return what the JSON file holds."""
    crowd = np.zeros((SIDE, SIDE), np.uint8, order="F")
    crowd[2:12, 34:39] = 1
    coded = coco_mask.encode(crowd)
    counts = coded["counts"] if isinstance(coded["counts"], str) else coded["counts"].decode()
    annotations: list[dict[str, Any]] = [
        {
            "id": 11,
            "image_id": 1,
            "category_id": 17,
            "bbox": [3, 3, 20, 27],
            "segmentation": [square(3, 3, 20), square(3, 25, 5)],
            "area": 425,
            "iscrowd": 0,
        },
        {
            "id": 12,
            "image_id": 1,
            "category_id": 38,
            "bbox": [8, 8, 6, 6],
            "segmentation": [square(8, 8, 6), [8, 8, 14, 14]],
            "area": 36,
            "iscrowd": 0,
        },
        {
            "id": 13,
            "image_id": 1,
            "category_id": 17,
            "bbox": [34, 2, 5, 10],
            "segmentation": {"size": [SIDE, SIDE], "counts": plain_counts(crowd)},
            "area": 50,
            "iscrowd": 1,
        },
        {
            "id": 14,
            "image_id": 1,
            "category_id": 38,
            "bbox": [20, 30, 0, 4],
            "segmentation": [],
            "area": 0,
            "iscrowd": 0,
        },
        {
            "id": 15,
            "image_id": 3,
            "category_id": 38,
            "segmentation": {"size": [SIDE, SIDE], "counts": counts},
            "iscrowd": 0,
        },
    ]
    images = [{"id": i, "file_name": f"{i:012d}.png", "width": SIDE, "height": SIDE} for i in (1, 2, 3)]
    categories = [{"id": 38, "name": "kite", "supercategory": "sports"}, {"id": 17, "name": "cat"}]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


def plain_counts(mask: np.ndarray[Any, Any]) -> list[int]:
    """Return uncompressed run-lengths, column by column, the first for zeros."""
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges.tolist(), len(flat)]).tolist()
    return [0, *runs] if flat[0] else runs
