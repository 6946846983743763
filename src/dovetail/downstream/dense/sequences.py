"""Sequences of images with masks: folders of frames, as DAVIS has them.

    DAVIS/JPEGImages/480p/SEQUENCE/00000.jpg    DAVIS/Annotations/480p/SEQUENCE/00000.png    (ImageSets/2017/val.txt)
    data/images/SEQUENCE/frame_000.jpg          data/masks/SEQUENCE/frame_000.png            (or in data/val/)

Frames are in the order of their names. Label 0 is the background, every other one an object; the first frame needs a
mask, of the others those that are to be measured on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from dovetail.errors import DataError

HELD_OUT = ("val", "valid", "validation", "test")


@dataclass(frozen=True)
class ImageSequence:
    """A folder of frames.

    Attributes:
        name: Of the folder.
        frames: Paths, in order.
        masks: The path of each one's mask; None for those without.
    """

    name: str
    frames: tuple[Path, ...]
    masks: tuple[Path | None, ...]

    def images(self) -> Iterator[Tensor]:
        """Yield the frames, [3, H, W] uint8."""
        yield from map(read_image, self.frames)

    def labels(self) -> list[Tensor | None]:
        """Return the masks [H, W] int64, None for frames without.

        Raises:
            DataError: Where masks differ in size from the first one.
        """
        found = [None if path is None else read_mask(path) for path in self.masks]
        sizes = {tuple(mask.shape) for mask in found if mask is not None}
        if len(sizes) > 1:
            raise DataError(f"The masks of the sequence {self.name} differ in size; save them at one size.")
        first = found[0]
        if first is not None:
            check_sizes(read_image(self.frames[0]), first, str(self.masks[0]), self.frames[0].name)
        return found


def find_sequences(data: str | Path) -> list[ImageSequence]:
    """Return the sequences of a set, by name; none where it has images beside masks, or another format.

    Raises:
        DovetailError: For a sequence without masks, whose first frame has none, or with fewer than two frames.
    """
    folder = Path(data)
    names: list[str] | None = None
    for root in (folder, folder / "DAVIS"):
        images, masks = root / "JPEGImages" / "480p", root / "Annotations" / "480p"
        if images.is_dir() and masks.is_dir():
            listed = root / "ImageSets" / "2017" / "val.txt"
            names = listed.read_text(encoding="utf-8").split() if listed.is_file() else None
            return _in_folders(images, masks, names)
    for images, masks in _layouts(folder):
        if _holds_folders(images) and _holds_folders(masks):
            return _in_folders(images, masks, names)
    return []


def _layouts(folder: Path) -> Iterator[tuple[Path, Path]]:
    for split in HELD_OUT:
        yield folder / split / "images", folder / split / "masks"
        yield folder / "images" / split, folder / "masks" / split
    yield folder / "images", folder / "masks"


def _holds_folders(images: Path) -> bool:
    """Whether a folder holds folders of files and no file of its own; train and the like are parts of a set instead."""
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
        raise DataError(f"The sequence {images} has one frame; labels are carried to a second one, so add some.")
    if stems[0] not in labels:
        raise DataError(f"The first frame of {images}, {frames[stems[0]].name}, has no mask in {masks}; add one.")
    return ImageSequence(images.name, tuple(frames[stem] for stem in stems), tuple(labels.get(stem) for stem in stems))
