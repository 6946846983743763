"""Folders of images by class, as ImageNet has them, and the two ways of cutting an image to size.

    data/train/<class>/*.jpg    data/val/<class>/*.jpg    (or valid, validation, test)

Instead of folders there may be a set that Hugging Face's `datasets` saved on disk.

Shapes: C channels, S pixels a side.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from dovetail.data.folders import left_out, list_images
from dovetail.data.hugging_face import is_saved
from dovetail.data.reading.decode import Photograph, open_file
from dovetail.data.reading.peaks import told_of_values
from dovetail.data.reading.values import value_range
from dovetail.downstream.labels.arrow import saved_classes
from dovetail.downstream.labels.class_sets import ClassSet, check_several
from dovetail.downstream.labels.labelled import what_is_at
from dovetail.downstream.progress import progress
from dovetail.downstream.table.results import fingerprint
from dovetail.errors import DataError

HELD_OUT = ("val", "valid", "validation", "test")
RESIZE_SHARE = 256 / 224  # the field's protocol: shorter side to 256, central 224


@dataclass(frozen=True)
class ClassFolder(ClassSet):
    """Images in one folder for each class. Build with `ClassFolder.find`.

    Attributes:
        paths: The images, by class, then by name.
        labels: The class of each.
        names: Of the classes: label l is names[l].
        note: A sentence on the files that are not read, or nothing.
    """

    paths: tuple[Path, ...]
    labels: tuple[int, ...]
    names: tuple[str, ...]
    note: str = ""

    @classmethod
    def find(cls, folder: Path, *, names: tuple[str, ...] | None = None) -> ClassFolder:
        """Return the images of a folder of folders.

        Args:
            folder: Holds one folder for each class.
            names: The classes, where another folder has said what they are; sorted folder names without it.

        Raises:
            DataError: For a missing folder, one without class folders or images, and for unknown classes.
        """
        if not folder.is_dir():
            raise DataError(f"There is no folder {folder}; {what_is_at(folder)}.")
        found = sorted(one.name for one in folder.iterdir() if one.is_dir() and not one.name.startswith("."))
        if not found:
            raise DataError(f"{folder} holds no folders of classes; sort its images into one folder for each class.")
        known = names if names is not None else tuple(found)
        unknown = sorted(set(found) - set(known))
        if unknown:
            raise DataError(
                f"{folder} holds class {unknown[0]!r}, which the training images lack; give both the same classes."
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
            raise DataError(f"The class folders of {folder} hold no images; put some in.")
        return cls(tuple(paths), tuple(labels), known, left_out(others))

    def open(self, index: int, channels: int) -> Photograph:
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


def open_splits(data: str | Path) -> tuple[ClassSet, ClassSet, str]:
    """Return the training and the held-out images of a folder laid out as above, and what to know about the split.

    Raises:
        DataError: Where either is missing.
    """
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
            f"{folder} has a folder train, but none named val, valid, validation or test; add one to measure on."
        )
    measured = ClassFolder.find(held_out, names=train.names)
    parts = ((train, "train"), (measured, held_out.name))
    notes = [f"{part.note[:-1]} in {place}." for part, place in parts if part.note]
    return train, measured, " ".join(filter(None, [*notes, told_of_values(train.paths, value_range())]))


def central(data: ClassSet, index: int, *, channels: int, size: int) -> Tensor:
    """Return [C, S, S] uint8: shorter side to S * 256 / 224 px (bicubic), then the central square."""
    shorter = round(size * RESIZE_SHARE)
    pixels = data.pixels(index, channels=channels, side=shorter)
    factor = shorter / min(pixels.shape[1:])
    height, width = (max(round(side * factor), shorter) for side in pixels.shape[1:])
    pixels = resized(pixels, height, width)
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[:, top : top + size, left : left + size]


def random_crop(
    data: ClassSet, index: int, rng: np.random.Generator, *, channels: int, size: int, smallest_area: float = 0.08
) -> Tensor:
    """Return [C, S, S] uint8: a random part of the image (area from `smallest_area` on, aspect 3/4 to 4/3), flipped
    left to right half of the time (Szegedy et al., 2015, https://arxiv.org/abs/1409.4842)."""
    pixels = data.pixels(index, channels=channels, side=size)
    height, width = pixels.shape[1:]
    box = (0, 0, height, width)
    for _ in range(10):
        area = rng.uniform(smallest_area, 1.0) * height * width
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            box = (int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1)), high, wide)
            break
    top, left, high, wide = box
    cut = pixels[:, top : top + high, left : left + wide]
    cut = resized(cut, size, size)
    return cut.flip(2) if rng.random() < 0.5 else cut


def resized(pixels: Tensor, height: int, width: int) -> Tensor:
    """Return pixels [C, H, W] uint8 at another size, bicubic with antialiasing."""
    result: Tensor = tv.resize(pixels, [height, width], interpolation=InterpolationMode.BICUBIC, antialias=True)
    return result
