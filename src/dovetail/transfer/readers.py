"""Labelled sets for segmentation as their makers hand them out; the format is told by the folders.

* VOC 2012: palette masks, 255 is void; with SegmentationClassAug and trainaug.txt, the augmented training set.
* ADE20K (ADEChallengeData2016): label 0 is "other" and does not count, 1 .. 150 become 0 .. 149.
* Cityscapes: labelTrainIds as they are, else labelIds, of which 19 of 34 count.
* Images beside masks: images/ and masks/ (with or without train/ and val/ in them), or train/images and train/masks.
* COCO JSON: categories become 1 .. K, what no object covers is class 0, "background"; the smaller object is on top.

Shapes: H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dovetail.errors import DovetailError
from dovetail.transfer.coco import CocoSet, find_coco
from dovetail.transfer.label_names import CITYSCAPES_IDS, CITYSCAPES_NAMES, VOC_NAMES
from dovetail.transfer.labelled import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    Labelled,
    LabelledSet,
    by_stem,
    check_labels,
    read_image,
    read_mask,
)
from dovetail.transfer.metrics import IGNORE_INDEX

HELD_OUT_SHARE = 0.2


class MissingFilesError(DovetailError):
    """Files that should be there are not; `faults` has a sentence for each."""

    def __init__(self, sentence: str, faults: tuple[str, ...]) -> None:
        super().__init__(sentence)
        self.faults = faults


@dataclass(frozen=True)
class MaskFiles:
    """Images and masks by path, read when asked for.

    Attributes:
        images: Paths.
        masks: The path of each one's mask.
        classes: Labels are 0 .. classes - 1 after `relabel`.
        relabel: What the label in a file means: relabel[l], the ignored label for those beyond it; None for itself.
        ignore_index: The label of pixels that do not count.
    """

    images: tuple[Path, ...]
    masks: tuple[Path, ...]
    classes: int
    relabel: tuple[int, ...] | None = None
    ignore_index: int = IGNORE_INDEX

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Labelled:
        image, mask = read_image(self.images[index]), self.labels(index)
        if image.shape[1:] != mask.shape:
            raise DovetailError(
                f"{self.masks[index]} is {mask.shape[1]}x{mask.shape[0]} pixels, its image {self.images[index].name} "
                f"{image.shape[2]}x{image.shape[1]}; save both at one size."
            )
        return Labelled(image, mask)

    def labels(self, index: int) -> Tensor:
        """Return a mask [H, W], relabelled and checked."""
        mask = read_mask(self.masks[index])
        if self.relabel is None:
            check_labels(mask, self.classes, self.ignore_index, str(self.masks[index]))
            return mask
        table = torch.full((max(int(mask.max()) + 1, len(self.relabel)),), -1, dtype=torch.int64)
        table[: len(self.relabel)] = torch.tensor(self.relabel)
        if len(table) > self.ignore_index:
            table[self.ignore_index] = self.ignore_index
        relabelled = table[mask.clamp(min=0)]
        if bool((relabelled == -1).any()):
            raise DovetailError(
                f"{self.masks[index]} holds label {int(mask[relabelled == -1].max())}, beyond the {len(self.relabel)} "
                "that its format has; save the masks anew."
            )
        return relabelled

    def classes_in(self, index: int) -> list[int]:
        """Return the classes that occur in an image."""
        found: list[int] = torch.unique(self.labels(index)).tolist()
        return [label for label in found if label != self.ignore_index]

    def files(self) -> list[Path]:
        """Return all files of the set."""
        return [*self.images, *self.masks]

    def faults(self) -> Iterator[str]:
        """Read the whole set and yield one sentence for each image or mask that cannot be used."""
        yield from faults_of_items(self)

    def subset(self, indices: list[int]) -> MaskFiles:
        """Return the images at `indices`."""
        images, masks = (tuple(files[index] for index in indices) for files in (self.images, self.masks))
        return replace(self, images=images, masks=masks)


@dataclass(frozen=True)
class CocoMasks:
    """Semantic masks drawn from a COCO set's objects, crowds included: label 0 is background, category c is c + 1."""

    coco: CocoSet
    ignore_index: int = IGNORE_INDEX

    @property
    def classes(self) -> int:
        """The categories and background."""
        return len(self.coco.names) + 1

    def __len__(self) -> int:
        return len(self.coco)

    def __getitem__(self, index: int) -> Labelled:
        found = self.coco.images[index]
        image = read_image(found.path)
        if tuple(image.shape[1:]) != (found.height, found.width):
            raise DovetailError(
                f"{found.path} is {image.shape[2]}x{image.shape[1]} pixels, but its annotations say "
                f"{found.width}x{found.height}; correct the annotations."
            )
        mask = np.zeros((found.height, found.width), dtype=np.int64)
        for one in sorted(found.objects, key=lambda one: -one.area):
            mask[one.mask(found.height, found.width)] = one.label + 1
        return Labelled(image, torch.from_numpy(mask))

    def classes_in(self, index: int) -> list[int]:
        """Return the classes that occur in an image, background left out."""
        return sorted({one.label + 1 for one in self.coco.images[index].objects})

    def files(self) -> list[Path]:
        """Return all files of the set that there are."""
        return [self.coco.path, *(image.path for image in self.coco.images if image.path.is_file())]

    def faults(self) -> Iterator[str]:
        """Read the whole set and yield one sentence for each image that cannot be used."""
        yield from faults_of_items(self)

    def subset(self, indices: list[int]) -> CocoMasks:
        """Return the images at `indices`."""
        return replace(self, coco=self.coco.subset(indices))


def faults_of_items(data: LabelledSet) -> Iterator[str]:
    """Read every item and yield one sentence for each that cannot be used."""
    for index in range(len(data)):
        try:
            data[index]
        except DovetailError as fault:
            yield str(fault)


@dataclass(frozen=True)
class SegmentationData:
    """A labelled set, read.

    Attributes:
        format: "voc", "ade20k", "cityscapes", "folders" or "coco".
        train: Images to learn from.
        val: Images to measure on.
        classes: Number of classes.
        names: Of the classes; numbers where none are known.
        note: What to know about the split, or nothing.
    """

    format: str
    train: MaskFiles | CocoMasks
    val: MaskFiles | CocoMasks
    classes: int
    names: tuple[str, ...]
    note: str = ""


def open_segmentation(data: str | Path, *, classes: int | None = None) -> SegmentationData:
    """Return the set at `data`, whose format is told by what is there.

    Args:
        data: A folder, or a COCO JSON file.
        classes: Number of classes, for images beside masks; counted by reading all masks unless given.

    Raises:
        DovetailError: For a folder of no known format, and where images lack masks.
    """
    folder = Path(data)
    for opener in (open_voc, open_ade20k, open_cityscapes, open_coco):
        found = opener(folder)
        if found is not None:
            return found
    return open_folders(folder, classes)


def open_voc(data: Path) -> SegmentationData | None:
    """Return VOC's segmentation set in `data`, or in the VOCdevkit/VOC2012 or VOC2012 in it; None for others."""
    roots = (data, data / "VOCdevkit" / "VOC2012", data / "VOC2012")
    root = next((one for one in roots if (one / "ImageSets" / "Segmentation").is_dir()), None)
    if root is None:
        return None
    lists, augmented = root / "ImageSets" / "Segmentation", root / "SegmentationClassAug"
    with_aug = augmented.is_dir() and (lists / "trainaug.txt").is_file()
    train_list = lists / ("trainaug.txt" if with_aug else "train.txt")
    train = voc_split(root, train_list, augmented if with_aug else root / "SegmentationClass")
    val = voc_split(root, lists / "val.txt", root / "SegmentationClass")
    note = f"VOC's training set is {train_list.name}, {len(train)} images."
    return SegmentationData("voc", train, val, len(VOC_NAMES), VOC_NAMES, note)


def voc_split(root: Path, names: Path, masks: Path) -> MaskFiles:
    """Return the images that a list names: one stem a line, or the paths of image and mask."""
    if not names.is_file():
        raise DovetailError(f"There is no list {names}; VOC's sets have one.")
    stems = [Path(line.split()[0]).stem for line in names.read_text(encoding="utf-8").splitlines() if line.strip()]
    images = tuple(root / "JPEGImages" / f"{stem}.jpg" for stem in stems)
    return checked(MaskFiles(images, tuple(masks / f"{stem}.png" for stem in stems), len(VOC_NAMES)), str(names))


def checked(files: MaskFiles, where: str) -> MaskFiles:
    """Return `files`; raise `DovetailError` where one of them is missing."""
    if not files.images:
        raise DovetailError(f"{where} names no image; give at least one.")
    missing = [path for path in files.files() if not path.is_file()]
    if missing:
        raise MissingFilesError(
            f"{len(missing)} files that {where} names are missing, such as {missing[0]}; add them.",
            tuple(f"{path} is missing, but {where} names it." for path in missing),
        )
    return files


def open_ade20k(data: Path) -> SegmentationData | None:
    """Return ADE20K's scene parsing set; None for others."""
    roots = (data, data / "ADEChallengeData2016")
    root = next((one for one in roots if (one / "annotations" / "training").is_dir()), None)
    if root is None:
        return None
    relabel = (IGNORE_INDEX, *range(150))
    splits = [
        replace(paired(root / "images" / split, root / "annotations" / split, 150), relabel=relabel)
        for split in ("training", "validation")
    ]
    info = root / "objectInfo150.txt"
    names = [str(index) for index in range(150)]
    if info.is_file():
        rows = info.read_text(encoding="utf-8").splitlines()[1:]
        names = [row.split("\t")[-1].split(",")[0].strip() for row in rows if row.strip()][:150] or names
    return SegmentationData("ade20k", splits[0], splits[1], 150, tuple(names))


def open_cityscapes(data: Path) -> SegmentationData | None:
    """Return Cityscapes' fine annotations; None for others."""
    if not (data / "leftImg8bit").is_dir() or not (data / "gtFine").is_dir():
        return None
    splits = [cityscapes_split(data, split) for split in ("train", "val")]
    return SegmentationData("cityscapes", splits[0], splits[1], 19, CITYSCAPES_NAMES)


def cityscapes_split(data: Path, split: str) -> MaskFiles:
    """Return a split, with labelTrainIds where all of them are there, else with labelIds."""
    images = sorted((data / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
    stems = [(image.parent.name, image.name.removesuffix("_leftImg8bit.png")) for image in images]
    masks = [data / "gtFine" / split / city / f"{stem}_gtFine_labelTrainIds.png" for city, stem in stems]
    if images and all(mask.is_file() for mask in masks):
        return MaskFiles(tuple(images), tuple(masks), 19)
    relabel = [IGNORE_INDEX] * 34
    for train_id, label in enumerate(CITYSCAPES_IDS):
        relabel[label] = train_id
    masks = [data / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png" for city, stem in stems]
    files = MaskFiles(tuple(images), tuple(masks), 19, tuple(relabel))
    return checked(files, f"Cityscapes' folder {data / 'leftImg8bit' / split}")


def open_coco(data: Path) -> SegmentationData | None:
    """Return semantic masks from a COCO set's objects; None for others."""
    found = find_coco(data)
    if found is None:
        return None
    train = CocoMasks(CocoSet.open(found[0]))
    names = ("background", *train.coco.names)
    if found[1] is not None:
        val = CocoMasks(CocoSet.open(found[1]))
        if val.coco.names != train.coco.names:
            raise DovetailError(f"{found[1]} has other categories than {found[0]}; give both the same list.")
        return SegmentationData("coco", train, val, len(names), names)
    kept, held = held_out(len(train))
    return SegmentationData("coco", train.subset(kept), train.subset(held), len(names), names, split_note(held, kept))


def open_folders(data: Path, classes: int | None) -> SegmentationData:
    """Return images beside masks, split as the folders say, or with a fixed fifth held out."""
    layouts: tuple[Callable[[str], tuple[Path, Path]], ...] = (
        lambda split: (data / "images" / split, data / "masks" / split),
        lambda split: (data / split / "images", data / split / "masks"),
    )
    for layout in layouts:
        if layout("train")[0].is_dir():
            val = next((name for name in ("val", "valid", "validation", "test") if layout(name)[0].is_dir()), "val")
            train_files, val_files = paired(*layout("train"), classes or 0), paired(*layout(val), classes or 0)
            count = classes or count_classes([train_files, val_files])
            parts = [replace(files, classes=count) for files in (train_files, val_files)]
            return SegmentationData("folders", parts[0], parts[1], count, numbers(count))
    if not (data / "images").is_dir():
        raise DovetailError(
            f"{data} is no set that is known: neither VOC, ADE20K, Cityscapes, a COCO JSON file nor a folder 'images' "
            "beside a folder 'masks'."
        )
    files = paired(data / "images", data / "masks", classes or 0)
    files = replace(files, classes=classes or count_classes([files]))
    kept, held = held_out(len(files))
    parts = [files.subset(kept), files.subset(held)]
    count = files.classes
    return SegmentationData("folders", parts[0], parts[1], count, numbers(count), split_note(held, kept))


def paired(images: Path, masks: Path, classes: int) -> MaskFiles:
    """Return images and masks matched by stem, in the order of stems.

    Raises:
        DovetailError: For images without masks.
    """
    found, labels = by_stem(images, IMAGE_SUFFIXES, "image"), by_stem(masks, MASK_SUFFIXES, "mask")
    lonely = sorted(set(found) - set(labels))
    if lonely:
        raise MissingFilesError(
            f"{len(lonely)} of {len(found)} images in {images} have no mask in {masks}, such as "
            f"{found[lonely[0]].name}; add {lonely[0]}.png there or take the image away.",
            tuple(f"{found[stem]} has no mask in {masks}." for stem in lonely),
        )
    stems = sorted(found)
    return MaskFiles(tuple(found[stem] for stem in stems), tuple(labels[stem] for stem in stems), classes)


def count_classes(sets: list[MaskFiles]) -> int:
    """Return one more than the largest label in all masks that is not the ignored one."""
    largest = 0
    for files in sets:
        for path in files.masks:
            labels = read_mask(path)
            counted = labels[labels != files.ignore_index]
            largest = max(largest, int(counted.max())) if counted.numel() else largest
    return largest + 1


def numbers(count: int) -> tuple[str, ...]:
    """Return names for classes that have none."""
    return tuple(str(index) for index in range(count))


def held_out(count: int) -> tuple[list[int], list[int]]:
    """Return which of `count` images are learned from, and the fifth that is measured on; always the same."""
    if count < 2:
        raise DovetailError("One image is too few to learn from and measure on; add some.")
    order = np.random.default_rng(0).permutation(count)
    held = max(round(HELD_OUT_SHARE * count), 1)
    return sorted(order[held:].tolist()), sorted(order[:held].tolist())


def split_note(held: list[int], kept: list[int]) -> str:
    """Return what to know about a split that the set does not have itself."""
    return f"The set has no validation part: {len(held)} of {len(held) + len(kept)} images were held out to measure on."
