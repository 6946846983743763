"""Small seeded images that every job reads, written once for both trees."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLOURS = ((210, 50, 40), (50, 200, 60), (40, 60, 210))
SIDE = 64


def write_inputs(folder: Path) -> Path:
    """Write images/, more/, classes/, masks/ and coco/ into `folder`; return it."""
    rng = np.random.default_rng(0)
    write_images(folder / "images", rng, count=8)
    write_images(folder / "more", rng, count=3)
    write_classes(folder / "classes", rng)
    write_masks(folder / "masks", rng)
    for split, count in (("train2017", 4), ("val2017", 2)):
        write_boxes(folder / "coco", rng, split=split, count=count)
    return folder


def blots(rng: np.random.Generator, width: int = SIDE, height: int = SIDE) -> np.ndarray[Any, Any]:
    """Return [height, width, 3] uint8 of coloured blots with noise."""
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.float64)
    return (smooth + rng.normal(0, 10, smooth.shape)).clip(0, 255).astype(np.uint8)


def write_images(folder: Path, rng: np.random.Generator, *, count: int) -> None:
    """Write unlabelled JPEGs of two sizes."""
    folder.mkdir(parents=True)
    for index in range(count):
        Image.fromarray(blots(rng, 88 + 8 * (index % 2), 72)).save(folder / f"{index:02d}.jpg", quality=95)


def write_classes(root: Path, rng: np.random.Generator) -> None:
    """Write train/CLASS/ and val/CLASS/, classes told apart by a tint."""
    for split, count in (("train", 6), ("val", 3)):
        for label, colour in enumerate(COLOURS):
            folder = root / split / f"class{label}"
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = (blots(rng).astype(np.uint16) + np.array(colour, np.uint16)) // 2
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{index}.png")


def write_masks(root: Path, rng: np.random.Generator) -> None:
    """Write images/ and masks/ of two classes: a coloured square on blots."""
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for index in range(8):
        pixels, mask = blots(rng), np.zeros((SIDE, SIDE), np.uint8)
        left, top = (int(value) for value in rng.integers(4, 30, 2))
        pixels[top : top + 26, left : left + 26] = COLOURS[index % 3]
        mask[top : top + 26, left : left + 26] = 1
        Image.fromarray(pixels).save(root / "images" / f"{index}.png")
        Image.fromarray(mask).save(root / "masks" / f"{index}.png")


def write_boxes(root: Path, rng: np.random.Generator, *, split: str, count: int) -> None:
    """Write one split of a COCO set: two squares on each image, with boxes and polygons."""
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    images, annotations = [], []
    for index in range(1, count + 1):
        pixels = blots(rng)
        for which in range(2):
            left, top = (int(value) for value in rng.integers(2, 12, 2) + 26 * which)
            side = 16 + 2 * which
            pixels[top : top + side, left : left + side] = COLOURS[which]
            polygon = [left, top, left + side, top, left + side, top + side, left, top + side]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": index,
                    "category_id": which + 1,
                    "bbox": [left, top, side, side],
                    "segmentation": [polygon],
                    "area": side * side,
                    "iscrowd": 0,
                }
            )
        Image.fromarray(pixels).save(root / split / f"{index}.png")
        images.append({"id": index, "file_name": f"{index}.png", "width": SIDE, "height": SIDE})
    categories = [{"id": 1, "name": "red"}, {"id": 2, "name": "green"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")
