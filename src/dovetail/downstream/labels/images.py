"""Folders of images by class as in ImageNet, and centre and random crops.

    data/train/<class>/*.jpg    data/val/<class>/*.jpg    (or valid, validation, test)

A saved Hugging Face dataset is supported, too.

Shapes: C channels, S pixels a side.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from dovetail.data.folders import left_out, list_images
from dovetail.data.hugging_face import is_saved
from dovetail.data.reading.decode import LazyImage, open_file
from dovetail.data.reading.peaks import told_of_values
from dovetail.data.reading.values import value_range
from dovetail.downstream.labels.arrow import saved_classes
from dovetail.downstream.labels.class_sets import ClassSet, check_several
from dovetail.downstream.labels.given import given_classes, is_given
from dovetail.downstream.labels.labelled import what_is_at
from dovetail.downstream.progress import progress
from dovetail.downstream.table.results import fingerprint
from dovetail.errors import DataError
from dovetail.sizes import Size, sides

HELD_OUT = ("val", "valid", "validation", "test")
RESIZE_SHARE = 256 / 224  # the usual protocol: shorter side 256, centre crop 224


@dataclass(frozen=True)
class ClassFolder(ClassSet):
    """Images in one folder per class. Use `ClassFolder.find` to create it.

    Attributes:
        paths: Paths of the images, sorted by class and name.
        labels: Class of each image.
        names: Class names: label l is names[l].
        note: A sentence about skipped files, or an empty string.
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    note: str = ""

    @classmethod
    def find(cls, folder: Path, *, names: tuple[str, ...] | None = None) -> ClassFolder:
        """Return the images of a folder of class folders.

        Args:
            folder: Folder with one folder per class.
            names: Class names. Default: the sorted names of the folders.

        Raises:
            DataError: The folder is missing, has no class folders or images, or has an unknown class.
        """
        if not folder.is_dir():
            raise DataError(f"The folder {folder} does not exist; {what_is_at(folder)}.")
        found = sorted(one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))
        if not found:
            raise DataError(f"{folder} has no class folders; sort its images into one folder per class.")
        known = names if names is not None else tuple(found)
        unknown = sorted(set(found) - set(known))
        if unknown:
            raise DataError(
                f"{folder} has class {unknown[0]!r}, which the training images lack; use the same classes in both."
            )
        paths: list[Path] = []
        labels: list[int] = []
        others: Counter[str] = Counter()
        with progress(f"listing {folder.name}", len(found)) as advance:
            for name in found:
                listing = list_images(folder / name)
                inside = sorted(map(Path, listing.images))
                paths += inside
                others += listing.others
                labels += [known.index(name)] * len(inside)
                advance(1)
        if not paths:
            raise DataError(f"The class folders of {folder} are empty; add images.")
        return cls(tuple(paths), tuple(labels), known, left_out(others))

    def open(self, index: int, channels: int) -> LazyImage:
        return open_file(self.paths[index], channels)

    def called(self, index: int) -> str:
        return str(self.paths[index])

    def place(self) -> str:
        return f"beside {self.paths[0].parent}"

    def files(self) -> list[Path]:
        return list(self.paths)

    def identity(self) -> str:
        return repr((fingerprint(self.paths), [str(path) for path in self.paths]))

    def subset(self, indices: list[int]) -> ClassFolder:
        chosen = tuple(self.paths[i] for i in indices), tuple(self.labels[i] for i in indices)
        return ClassFolder(*chosen, self.names)


def open_splits(data: Any) -> tuple[ClassSet, ClassSet, str]:
    """Return the training and validation images of a folder (see the module's docstring) or of datasets in Python, and
    a note on the split.

    Raises:
        DataError: Either part is missing.
    """
    if is_given(data):
        return given_classes(data)
    folder = Path(data)
    if is_saved(folder):
        return saved_classes(folder)
    if not (folder / "train").is_dir():
        raise DataError(
            f"There is no folder {folder / 'train'}; {what_is_at(folder / 'train')}, but images with classes lie in "
            "train/CLASS/ and val/CLASS/."
        )
    train = ClassFolder.find(folder / "train")
    check_several(train.names, folder / "train")
    held_out = next((folder / name for name in HELD_OUT if (folder / name).is_dir()), None)
    if held_out is None:
        raise DataError(
            f"{folder} has a folder train, but none named val, valid, validation or test; add one for evaluation."
        )
    measured = ClassFolder.find(held_out, names=train.names)
    parts = ((train, "train"), (measured, held_out.name))
    notes = [f"{part.note[:-1]} in {place}." for part, place in parts if part.note]
    return train, measured, " ".join(filter(None, [*notes, told_of_values(train.paths, value_range())]))


def central(data: ClassSet, index: int, *, channels: int, size: Size) -> Tensor:
    """Return the centre crop [C, h, w] in 0 to 255: 224 / 256 of the image in one direction (bicubic).

    For squares, the shorter side is resized to S * 256 / 224 px.
    """
    high, wide = sides(size)
    least = round(high * RESIZE_SHARE), round(wide * RESIZE_SHARE)
    pixels = data.pixels(index, channels=channels, side=max(least))
    factor = max(small / side for small, side in zip(least, pixels.shape[1:], strict=True))
    height, width = (max(round(side * factor), small) for small, side in zip(least, pixels.shape[1:], strict=True))
    pixels = resized(pixels, height, width)
    top, left = (height - high) // 2, (width - wide) // 2
    return pixels[:, top : top + high, left : left + wide]


def random_crop(
    data: ClassSet, index: int, rng: np.random.Generator, *, channels: int, size: Size, smallest_area: float = 0.08
) -> Tensor:
    """Return a random resized crop [C, h, w] in 0 to 255, which is flipped horizontally with probability 1/2.

    Szegedy et al., 2015, https://arxiv.org/abs/1409.4842. The relative area is at least `smallest_area`, and the aspect
    ratio is 3/4 to 4/3 times that of the result.
    """
    to_height, to_width = sides(size)
    pixels = data.pixels(index, channels=channels, side=max(to_height, to_width))
    height, width = pixels.shape[1:]
    box = (0, 0, height, width)
    for _ in range(10):
        area = rng.uniform(smallest_area, 1.0) * height * width
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3))) * (to_width / to_height)
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            box = (int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1)), high, wide)
            break
    top, left, high, wide = box
    cut = pixels[:, top : top + high, left : left + wide]
    cut = resized(cut, to_height, to_width)
    return cut.flip(2) if rng.random() < 0.5 else cut


def resized(pixels: Tensor, height: int, width: int) -> Tensor:
    """Resize pixels [C, H, W], uint8 or float32 in 0 to 255, bicubic with antialiasing."""
    result: Tensor = tv.resize(pixels, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)
    return result.clamp(0, 255) if result.is_floating_point() else result
