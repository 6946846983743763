"""Sequences of images with masks: folders of frames, as in DAVIS.

    DAVIS/JPEGImages/480p/SEQUENCE/00000.jpg    DAVIS/Annotations/480p/SEQUENCE/00000.png    (ImageSets/2017/val.txt)
    data/images/SEQUENCE/frame_000.jpg          data/masks/SEQUENCE/frame_000.png            (or in data/val/)

Frames are sorted by name. Label 0 is the background, and every other label is an object. The first frame needs a mask,
and so do all frames to evaluate on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from dovetail.downstream.labels.labelled import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    by_stem,
    check_sizes,
    read_image,
    read_mask,
)
from dovetail.downstream.labels.maps import LabelMap
from dovetail.errors import DataError

HELD_OUT = ("val", "valid", "validation", "test")


@dataclass(frozen=True)
class ImageSequence:
    """A folder of frames.

    Attributes:
        name: Name of the folder.
        frames: Paths of the frames, in order.
        masks: Path of each frame's mask, None for frames without a mask.
        label_map: Meaning of the values or colours in the masks, or None if the values are labels.
    """

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path | None, ...]
    label_map: LabelMap | None = None

    def images(self) -> Iterator[Tensor]:
        """Yield the frames, [3, H, W] uint8."""
        yield from map(read_image, self.frames)

    def labels(self) -> list[Tensor | None]:
        """Return the masks [H, W] int64, None for frames without a mask.

        Raises:
            DataError: The masks have different sizes.
        """
        found = [None if path is None else read_mask(path, label_map=self.label_map) for path in self.masks]
        sizes = {tuple(mask.shape) for mask in found if mask is not None}
        if len(sizes) > 1:
            raise DataError(f"The masks of the sequence {self.name} have different sizes; save them at the same size.")
        first = found[0]
        if first is not None:
            check_sizes(read_image(self.frames[0]), first, str(self.masks[0]), self.frames[0].name)
        return found


def find_sequences(data: str | Path, label_map: LabelMap | None = None) -> list[ImageSequence]:
    """Return the sequences of a dataset sorted by name, or none if it has another format.

    Args:
        data: Folder.
        label_map: Meaning of the values or colours in the masks, or None if the values are labels.

    Raises:
        DovetailError: A sequence has no mask for its first frame, or fewer than two frames.
    """
    found = _folders_in(Path(data))
    return [replace(one, label_map=label_map) for one in _in_folders(*found)] if found is not None else []


def _folders_in(folder: Path) -> tuple[Path, Path, Sequence[str] | None] | None:
    """Return the folders of images and masks, and the listed names if there is a list, or None for other formats."""
    for root in (folder, folder / "DAVIS"):
        images, masks = root / "JPEGImages" / "480p", root / "Annotations" / "480p"
        if images.is_dir() and masks.is_dir():
            listed = root / "ImageSets" / "2017" / "val.txt"
            return images, masks, listed.read_text(encoding="utf-8").split() if listed.is_file() else None
    layouts = (pair for pair in _layouts(folder) if all(map(_holds_folders, pair)))
    return next(((*pair, None) for pair in layouts), None)


def _layouts(folder: Path) -> Iterator[tuple[Path, Path]]:
    for split in HELD_OUT:
        yield folder / split / "images", folder / split / "masks"
        yield folder / "images" / split, folder / "masks" / split
    yield folder / "images", folder / "masks"


def _holds_folders(images: Path) -> bool:
    """Return whether a folder contains only folders of files. Folders such as train are splits of a dataset instead."""
    if not images.is_dir():
        return False
    entries = [one for one in images.iterdir() if not one.name.startswith(".")]
    inside = [one for one in entries if one.is_dir()]
    if not inside or any(one.suffix.lower() in IMAGE_SUFFIXES for one in entries if one.is_file()):
        return False
    return not any(one.name in ("train", *HELD_OUT) for one in inside)


def _in_folders(images: Path, masks: Path, names: Sequence[str] | None) -> list[ImageSequence]:
    chosen = sorted(one.name for one in images.iterdir() if one.is_dir()) if names is None else names
    return [_sequence(images / name, masks / name) for name in chosen]


def _sequence(images: Path, masks: Path) -> ImageSequence:
    frames, labels = by_stem(images, IMAGE_SUFFIXES, "image"), by_stem(masks, MASK_SUFFIXES, "mask")
    stems = sorted(frames)
    if len(stems) < 2:
        raise DataError(f"The sequence {images} has only one frame, but needs two or more; add frames.")
    if stems[0] not in labels:
        raise DataError(f"The first frame of {images}, {frames[stems[0]].name}, has no mask in {masks}; add one.")
    return ImageSequence(images.name, tuple(frames[stem] for stem in stems), tuple(labels.get(stem) for stem in stems))
