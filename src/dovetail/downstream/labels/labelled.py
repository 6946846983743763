"""Labelled images for segmentation: reads and checks images and masks.

Masks are PNG files with a palette ("P") or in grey ("L", 16-bit "I;16"), whose values are the labels. An image and its
mask have the same stem and the same size, but may have different suffixes.

Shapes: C channels, H x W pixels.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from dovetail.data.reading.decode import UnreadableError, open_bytes, opened, read_file
from dovetail.data.reading.recognise import SUFFIXES
from dovetail.data.reading.tiff import grey_pages, unexplained
from dovetail.data.reading.values import all_levels
from dovetail.downstream.labels.maps import LabelMap
from dovetail.errors import DataError, counted
from dovetail.files.missing import about_missing

IMAGE_SUFFIXES = SUFFIXES - {".npy"}  # .npy files are depth maps or features more often than images
MASK_SUFFIXES = frozenset({".png", ".tif", ".tiff", ".bmp", ".gif", ".pgm"})


log = logging.getLogger(__name__)


class Labelled(NamedTuple):
    """`image` [C, H, W] and `mask` [H, W] int64, the class of each pixel or the ignore index.

    Images are uint8, or float32 in 0 to 255 if they are deep and a value range is set.
    """

    image: Tensor
    mask: Tensor


class LabelledSet(Protocol):
    """Images with masks, by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Labelled: ...


class InMemory:
    """A dataset in memory, for small datasets that are read repeatedly."""

    def __init__(self, items: Sequence[Labelled]) -> None:
        self.items = list(items)

    @classmethod
    def of(cls, data: LabelledSet) -> InMemory:
        """Read all of `data` into memory."""
        return cls([data[index] for index in range(len(data))])

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Labelled:
        return self.items[index]

    def subset(self, indices: Sequence[int]) -> InMemory:
        """Return a dataset of the items at `indices`, in that order."""
        return InMemory([self.items[index] for index in indices])


def by_stem(folder: Path, suffixes: frozenset[str], kind: str) -> dict[str, Path]:
    """Return the files of a folder with one of the `suffixes`, by stem."""
    if not folder.is_dir():
        raise DataError(f"There is no folder {folder} with {kind}s; {what_is_at(folder)}.")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() not in suffixes or path.name.startswith("."):
            continue
        if path.stem in files:
            raise DataError(
                f"{folder} contains both {files[path.stem].name} and {path.name}; {kind}s need different stems."
            )
        files[path.stem] = path
    if not files:
        held = sorted({path.suffix or path.name for path in folder.iterdir()})
        raise DataError(f"{folder} contains no {kind}s, but: {', '.join(held[:8]) or 'nothing'}.")
    return files


def image_suffixes(folder: Path) -> frozenset[str]:
    """Return the suffixes of the images in a folder: .npy is one of them if the folder has no other images."""
    if not folder.is_dir() or any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir()):
        return IMAGE_SUFFIXES
    return IMAGE_SUFFIXES | {".npy"}


def others_in(folder: Path, suffixes: frozenset[str]) -> Counter[str]:
    """Return the number of skipped files in a folder by suffix, without hidden files."""
    names = (path for path in folder.iterdir() if not path.name.startswith(".") and path.is_file())
    return Counter(path.suffix.lower() for path in names if path.suffix.lower() not in suffixes)


def existing(data: Path | str) -> Path:
    """Return the path of a dataset. Raise `DataError` if it does not exist."""
    path = Path(data)
    if not path.exists():
        raise DataError(f"There is no file or folder {path}; {about_missing(path)}")
    return path


def what_is_at(path: Path) -> str:
    """Return a clause that describes what is at the path instead."""
    if path.exists():
        return "it is a file"
    parent = next((one for one in path.parents if one.is_dir()), Path.cwd())
    held = sorted(one.name for one in parent.iterdir() if one.is_dir())[:5]
    return f"{parent} contains {', '.join(held) if held else 'no folder'}"


def read_image(path: Path | str, content: bytes | None = None, *, channels: int = 3, upright: bool = True) -> Tensor:
    """Return an image as [C, H, W], decoded as in pre-training (see `dovetail.data.reading.decode`).

    It is uint8, or float32 in 0 to 255 with all levels of a deep image if a value range is set.

    Args:
        path: Path of the file, or a name for error messages.
        content: Bytes of the file. By default, they are read from `path`.
        channels: Number of channels C.
        upright: Whether to apply the EXIF orientation. It is always applied to TIFFs.

    Raises:
        DovetailError: The image cannot be read.
    """
    with faults_named(path), all_levels():
        encoded = read_file(path) if content is None else content
        return open_bytes(encoded, channels, upright=upright).decode(1).contiguous()


def read_image_of_size(
    path: Path | str, size: Sequence[int], content: bytes | None = None, *, channels: int = 3
) -> Tensor:
    """Read an image as `read_image`, but without its EXIF orientation if only then it has the size of its labels.

    Annotation programs may or may not apply the EXIF orientation, which can be detected by the size.

    Args:
        path: See `read_image`.
        size: Height and width of the labels.
        content: See `read_image`.
        channels: See `read_image`.
    """
    found = read_image(path, content, channels=channels)
    if tuple(found.shape[1:]) != tuple(size) == (found.shape[2], found.shape[1]):
        stored = read_image(path, content, channels=channels, upright=False)
        if tuple(stored.shape[1:]) == tuple(size):
            tell_stored(Path(path).parent, Path(path).name)
            return stored
    return found


@cache
def _told() -> set[Path]:
    """Return the folders that `tell_stored` has logged."""
    return set()


def tell_stored(folder: Path, name: str) -> None:
    """Log once per folder that the EXIF orientation of its images is not applied."""
    if folder not in _told():
        _told().add(folder)
        log.warning(
            "The EXIF orientation of images in %s such as %s is not applied, to match their labels.", folder, name
        )


def read_mask(path: Path | str, content: bytes | None = None, label_map: LabelMap | None = None) -> Tensor:
    """Return the labels of a mask as [H, W] int64: palette indices, grey values, or 0 and 1 of a bitmap.

    Args:
        path: Path of the file, or a name for error messages.
        content: Bytes of the file. By default, they are read from `path`.
        label_map: Classes of the values or colours in the file. By default, values are labels.

    Raises:
        DataError: The mask cannot be read, is a JPEG, or is in colour without a map of colours.
    """
    by_colour = label_map is not None and label_map.in_colour
    with faults_named(path), opened(read_file(path) if content is None else content) as image:
        mode, kind, bands = image.mode, image.format, max(grey_pages(image), 1 + unexplained(image))
        found = np.array(image.convert("RGB") if by_colour else image)
    if kind == "JPEG":
        raise DataError(f"{path} is a JPEG, which mixes labels at their borders; save the mask as PNG.")
    if bands > 1:
        raise DataError(f"{path} has {bands} bands or pages, but a mask has one label per pixel.")
    if mode in ("RGB", "RGBA") and not by_colour and bool((found[..., :1] == found[..., :3]).all()):
        mode, found = "L", found[..., 0]  # grey, saved as colour
    if mode not in ("P", "L", "1", "I", "I;16", "I;16B") and not by_colour:
        raise DataError.advising(
            f"{path} is in colour ({mode}), but a mask has one label per pixel",
            "specify the class of each colour, such as --label-map 0,0,0:0 255,0,0:1, or save it as a palette or grey "
            "image.",
        )
    if label_map is not None:
        return label_map.apply(found, str(path))
    return torch.from_numpy(found.astype(np.int64))


@contextmanager
def faults_named(image: Path | str) -> Iterator[None]:
    """Convert `UnreadableError` to a `DataError` with the name of the image."""
    try:
        yield
    except UnreadableError as fault:
        raise DataError(f"{image} cannot be read as an image ({fault}); replace or remove it.") from fault


def check_sizes(image: Tensor, mask: Tensor, mask_name: str, image_name: str) -> None:
    """Raise `DataError` if an image [C, H, W] and its mask [H, W] have different sizes."""
    if image.shape[1:] != mask.shape:
        raise DataError(
            f"{mask_name} is {mask.shape[1]}x{mask.shape[0]} pixels, its image {image_name} "
            f"{image.shape[2]}x{image.shape[1]}; save both at one size."
        )


def check_labels(mask: Tensor, classes: int, ignore_index: int, where: str) -> None:
    """Raise `DataError` if a label is neither a class nor the ignored label."""
    wrong = mask[((mask < 0) | (mask >= classes)) & (mask != ignore_index)]
    if wrong.numel():
        raise DataError(
            f"{where} contains label {int(wrong.max())} on {counted(wrong.numel(), 'pixel')}, but there are "
            f"{classes} classes (0 to {classes - 1}) and {ignore_index} is ignored; correct the number of classes."
        )
