"""Images and masks in the layouts of datasets, written for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZE = (24, 16)  # width, height


def write_image(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), 90, np.uint8)).save(path)


def write_mask(path: Path, values: Any, *, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    labels[:, : len(values)] = values
    image = Image.fromarray(labels)
    if palette:
        image = image.convert("P")
        image.putdata(labels.ravel().tolist())
        image.putpalette([value for index in range(256) for value in (index, 255 - index, (7 * index) % 256)])
    image.save(path)


def voc(root: Path, *, augmented: bool = False) -> Path:
    base = root / "VOCdevkit" / "VOC2012"
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for stem in ("2007_000032", "2007_000039", "2007_000063"):
        write_image(base / "JPEGImages" / f"{stem}.jpg")
        write_mask(base / "SegmentationClass" / f"{stem}.png", [1, 20, 255], palette=True)
        if augmented:
            write_mask(base / "SegmentationClassAug" / f"{stem}.png", [2, 15, 255])
    (lists / "train.txt").write_text("2007_000032\n")
    (lists / "val.txt").write_text("2007_000039\n\n")
    if augmented:
        (lists / "trainaug.txt").write_text(
            "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png\n2007_000063\n"
        )
    return root


def pairs(root: Path, values: list[int], *, count: int = 5) -> Path:
    for index in range(count):
        write_image(root / "images" / f"{index}.jpg")
        write_mask(root / "masks" / f"{index}.png", values)
    return root
