"""Opens segmentation datasets in their original layout. The format is recognised by the folders.

* VOC 2012: palette masks, 255 is void. With SegmentationClassAug and trainaug.txt, the augmented training set is used.
* ADE20K (ADEChallengeData2016): label 0 ("other") is ignored, 1 .. 150 become 0 .. 149.
* Cityscapes: labelTrainIds, or else labelIds, of which 19 of 34 are used.
* Images and masks: images/ and masks/ (with or without train/ and val/ in them), or train/images and train/masks.
* Hugging Face datasets saved with `save_to_disk`: a column of images and a column of masks with unchanged labels.
* COCO JSON: categories become 1 .. K, and class 0 is "background". Smaller objects are drawn over larger ones.

Shapes: H x W pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from dovetail.data.folders import left_out, with_slashes
from dovetail.data.hugging_face import is_saved
from dovetail.data.reading.peaks import told_of_values
from dovetail.data.reading.values import value_range
from dovetail.downstream.labels.arrow import saved_masks
from dovetail.downstream.labels.coco import CocoSet, find_coco, with_files
from dovetail.downstream.labels.coco_doubts import undrawn_masks
from dovetail.downstream.labels.counts import labels_in
from dovetail.downstream.labels.given import GivenMasks, is_given, names_in, open_given
from dovetail.downstream.labels.labelled import (
    IMAGE_SUFFIXES,
    MASK_SUFFIXES,
    by_stem,
    existing,
    image_suffixes,
    others_in,
)
from dovetail.downstream.labels.maps import LabelMap, read_label_map
from dovetail.downstream.labels.mask_sets import CocoMasks, MaskFiles, SegmentationSet, StoredMasks
from dovetail.downstream.labels.missing import refuse_missing_files
from dovetail.downstream.labels.names import CITYSCAPES_IDS, CITYSCAPES_NAMES, VOC_NAMES
from dovetail.downstream.labels.subsets import held_out, split_note
from dovetail.downstream.segment.metrics import IGNORE_INDEX
from dovetail.errors import DataError, MissingFilesError, OptionsError, counted

ANY_LABEL = 2**16  # number of classes that accepts all labels: as many as a 16-bit mask can have


@dataclass(frozen=True)
class SegmentationData:
    """A labelled dataset.

    Attributes:
        format: "voc", "ade20k", "cityscapes", "folders", "coco", "datasets", or "given" for datasets in Python.
        train: Training images.
        val: Validation images.
        classes: Number of classes.
        names: Class names, or numbers if they are unknown.
        note: Note on the split, may be empty.
        label_map: Classes of the values or colours in the masks, or None if the values are labels.
    """

    format: str
    train: SegmentationSet
    val: SegmentationSet
    classes: int
    names: tuple[str, ...]
    note: str = ""
    label_map: LabelMap | None = None

    def with_channels(self, channels: int) -> SegmentationData:
        """Return the same dataset, whose images are read with another number of channels."""
        return replace(self, train=self.train.with_channels(channels), val=self.val.with_channels(channels))


def open_segmentation(
    data: Any,
    *,
    classes: int | None = None,
    ignore_index: int = IGNORE_INDEX,
    label_map: Sequence[str] = (),
) -> SegmentationData:
    """Open a segmentation dataset, whose format is recognised automatically.

    Args:
        data: Folder or COCO JSON file, or datasets in Python (see `dovetail.downstream.labels.given`).
        classes: Number of classes, for folders of images and masks. By default, they are counted in all masks.
        ignore_index: Label of ignored pixels, for folders of images and masks, or -1 for none.
        label_map: Classes of the values or colours in masks, for folders of images and masks (see
            `dovetail.downstream.labels.maps`).

    Raises:
        DovetailError: The format is unknown, or masks are missing.
    """
    meaning = read_label_map(label_map, ignore_index)
    if is_given(data):
        return open_given_masks(data, classes, ignore_index, meaning)
    folder = existing(data)
    if is_saved(folder):
        return open_saved_masks(folder, classes, ignore_index, meaning)
    for opened in FORMATS.values():
        found = opened(folder)
        if found is not None:
            if classes not in (None, ANY_LABEL, found.classes):
                raise OptionsError(f"classes is {classes}, but {folder} has {found.classes}; omit --classes.")
            if ignore_index != IGNORE_INDEX:
                raise OptionsError(f"The format of {folder} has its own ignored label; omit --ignore-index.")
            if meaning is not None:
                raise OptionsError(f"The format of {folder} has its own labels; omit --label-map.")
            return found
    return open_folders(folder, classes, ignore_index, meaning)


def open_saved_masks(
    data: Path, classes: int | None, ignore_index: int, label_map: LabelMap | None
) -> SegmentationData:
    """Open a saved Hugging Face dataset with a column of images and a column of masks."""
    train, val, note = saved_masks(data, classes or 0, ignore_index, label_map)
    count, found = classes_of_masks([train, val], classes, label_map)
    parts = [replace(part, classes=count) for part in (train, val)]
    return SegmentationData(
        "datasets",
        parts[0],
        parts[1],
        count,
        names_of(count, label_map),
        joined(note, found, told_of_names(label_map)),
        label_map,
    )


def open_given_masks(data: Any, classes: int | None, ignore_index: int, label_map: LabelMap | None) -> SegmentationData:
    """Open datasets in Python whose items are images with masks."""
    train, val, note = open_given(data)
    parts = [GivenMasks(one, classes or 0, ignore_index, label_map) for one in (train, val)]
    count, found = classes_of_masks(parts, classes, label_map)
    parts = [replace(part, classes=count) for part in parts]
    named = names_in(train.dataset)
    names = named if len(named) == count else names_of(count, label_map)
    return SegmentationData("given", parts[0], parts[1], count, names, joined(note, found), label_map)


def open_voc(data: Path) -> SegmentationData | None:
    """Open VOC in `data`, or in its subfolder VOCdevkit/VOC2012 or VOC2012. Return None for other datasets."""
    roots = (data, data / "VOCdevkit" / "VOC2012", data / "VOC2012")
    root = next((one for one in roots if (one / "ImageSets" / "Segmentation").is_dir()), None)
    if root is None:
        return None
    lists, augmented = root / "ImageSets" / "Segmentation", root / "SegmentationClassAug"
    with_aug = augmented.is_dir() and (lists / "trainaug.txt").is_file()
    train_list = lists / ("trainaug.txt" if with_aug else "train.txt")
    train, val = both(
        partial(voc_split, root, train_list, augmented if with_aug else root / "SegmentationClass"),
        partial(voc_split, root, lists / "val.txt", root / "SegmentationClass"),
    )
    note = f"VOC's training set is {train_list.name}, {counted(len(train), 'image')}."
    return SegmentationData("voc", train, val, len(VOC_NAMES), VOC_NAMES, note)


def both(train: Callable[[], MaskFiles], val: Callable[[], MaskFiles]) -> tuple[MaskFiles, MaskFiles]:
    """Return the training and validation parts. Raise `MissingFilesError` with the missing files of both."""
    parts: list[MaskFiles] = []
    missing: list[MissingFilesError] = []
    for read in (train, val):
        try:
            parts.append(read())
        except MissingFilesError as fault:
            missing.append(fault)
    if missing:
        raise MissingFilesError(str(missing[0]), tuple(sentence for fault in missing for sentence in fault.faults))
    return parts[0], parts[1]


def voc_split(root: Path, names: Path, masks: Path) -> MaskFiles:
    """Return the images in a list: one stem per line, or the paths of image and mask."""
    if not names.is_file():
        raise DataError(f"The list {names} of VOC is missing; add it.")
    try:
        lines = names.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{names} cannot be read as a list ({error}); write one stem per line.") from error
    entries = [Path(with_slashes(line.split()[0])) for line in lines if line.strip()]
    stems = [entry.stem if entry.suffix.lower() in IMAGE_SUFFIXES else entry.name for entry in entries]
    images = tuple(root / "JPEGImages" / f"{stem}.jpg" for stem in stems)
    return checked(MaskFiles(images, tuple(masks / f"{stem}.png" for stem in stems), len(VOC_NAMES)), str(names))


def checked(files: MaskFiles, where: str) -> MaskFiles:
    """Return `files`. Raise `DataError` if one of them is missing, or leave out its image while they are collected."""
    if not files.images:
        raise DataError(f"{where} lists no images; add at least one.")
    missing = [path for path in files.files() if not path.is_file()]
    if missing:
        lost = {*missing}
        complete = [one for one, pair in enumerate(zip(files.images, files.masks, strict=True)) if not lost & {*pair}]
        refuse_missing_files(
            f"{where}: missing {counted(len(missing), 'file')}, such as {missing[0]}; add the missing files.",
            [f"{path} is missing, but {where} names it." for path in missing],
            left=len(complete),
        )
        return files.subset(complete)
    return files


def open_ade20k(data: Path) -> SegmentationData | None:
    """Open ADE20K's scene parsing dataset. Return None for other datasets."""
    roots = (data, data / "ADEChallengeData2016")
    root = next((one for one in roots if (one / "annotations" / "training").is_dir()), None)
    if root is None:
        return None
    relabel = (IGNORE_INDEX, *range(150))
    images, masks = root / "images", root / "annotations"
    parts = both(*(partial(paired, images / split, masks / split, 150) for split in ("training", "validation")))
    splits = [replace(files, relabel=relabel) for files in parts]
    info = root / "objectInfo150.txt"
    names = [str(index) for index in range(150)]
    if info.is_file():
        rows = info.read_text(encoding="utf-8", errors="replace").splitlines()[1:]
        names = [row.split("\t")[-1].split(",")[0].strip() for row in rows if row.strip()][:150] or names
    return SegmentationData("ade20k", splits[0], splits[1], 150, tuple(names))


def open_cityscapes(data: Path) -> SegmentationData | None:
    """Open Cityscapes with fine annotations. Return None for other datasets."""
    if not (data / "leftImg8bit").is_dir() or not (data / "gtFine").is_dir():
        return None
    splits = both(*(partial(cityscapes_split, data, split) for split in ("train", "val")))
    return SegmentationData("cityscapes", splits[0], splits[1], 19, CITYSCAPES_NAMES)


def cityscapes_split(data: Path, split: str) -> MaskFiles:
    """Return a split with labelTrainIds if all of them exist, or else with labelIds."""
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
    """Open a COCO dataset with semantic masks of its objects. Return None for other datasets."""
    found = find_coco(data)
    if found is None:
        return None
    train = with_masks(CocoSet.open(found[0]))
    names, note = ("background", *train.coco.names), undrawn_masks(train.coco)
    if found[1] is None:
        train = replace(train, coco=with_files(train.coco)[0])
    else:
        val = with_masks(CocoSet.open(found[1]))
        parts = with_files(train.coco, val.coco)
        train, val = replace(train, coco=parts[0]), replace(val, coco=parts[1])
        if val.coco.names != train.coco.names:
            raise DataError(f"{found[1]} and {found[0]} have different categories; use the same list in both.")
        return SegmentationData("coco", train, val, len(names), names, joined(note, undrawn_masks(val.coco)))
    kept, held = held_out(len(train))
    note = joined(split_note(held, kept), note)
    return SegmentationData("coco", train.subset(kept), train.subset(held), len(names), names, note)


def joined(*sentences: str) -> str:
    """Join the non-empty sentences."""
    return " ".join(sentence for sentence in sentences if sentence)


def with_masks(coco: CocoSet) -> CocoMasks:
    """Convert a COCO dataset to semantic masks. Raise `DataError` without any masks, or for too many categories."""
    if len(coco.names) >= IGNORE_INDEX:  # label 0 is background
        raise DataError(
            f"{coco.path} has {len(coco.names)} categories, but segmentation supports {IGNORE_INDEX - 1}; remove rare "
            "ones."
        )
    if not any(one.segmentation is not None for image in coco.images for one in image.objects):
        raise DataError(f"{coco.path} has no masks; segmentation needs objects with polygons or run-lengths.")
    return CocoMasks(coco)


FORMATS: Mapping[str, Callable[[Path], SegmentationData | None]] = {
    "voc": open_voc,
    "ade20k": open_ade20k,
    "cityscapes": open_cityscapes,
    "coco": open_coco,
}
"""Formats with their own labels, in the order in which they are tried. Each returns None for other datasets."""


def open_folders(
    data: Path, classes: int | None, ignore_index: int, label_map: LabelMap | None = None
) -> SegmentationData:
    """Open folders of images and masks, with the split of the folders, or with a fixed fifth held out."""
    layouts: tuple[Callable[[str], tuple[Path, Path]], ...] = (
        lambda split: (data / "images" / split, data / "masks" / split),
        lambda split: (data / split / "images", data / split / "masks"),
    )
    for layout in layouts:
        if layout("train")[0].is_dir():
            val = next((name for name in ("val", "valid", "validation", "test") if layout(name)[0].is_dir()), "val")
            pairs = both(*(partial(paired, *layout(split), classes or 0, ignore_index) for split in ("train", val)))
            splits = [replace(files, label_map=label_map) for files in pairs]
            note = surplus(*(layout(split) for split in ("train", val)))
            count, found = classes_of_masks(splits, classes, label_map)
            parts = [replace(files, classes=count) for files in splits]
            break
    else:
        if not (data / "images").is_dir():
            raise DataError(
                f"The format of {data} is unknown; expected VOC, ADE20K, Cityscapes, a COCO JSON file, a saved Hugging "
                "Face dataset, or folders 'images' and 'masks'."
            )
        files = replace(paired(data / "images", data / "masks", classes or 0, ignore_index), label_map=label_map)
        count, found = classes_of_masks([files], classes, label_map)
        files = replace(files, classes=count)
        kept, held = held_out(len(files))
        parts = [files.subset(kept), files.subset(held)]
        note = joined(split_note(held, kept), surplus((data / "images", data / "masks")))
    names = names_of(count, label_map)
    told = joined(found, told_of_names(label_map), told_of_values(parts[0].images, value_range()))
    return SegmentationData("folders", parts[0], parts[1], count, names, joined(note, told), label_map)


def surplus(*pairs: tuple[Path, Path]) -> str:
    """Return sentences about masks without an image and skipped files in pairs of folders, or an empty string."""
    others = sum((others_in(images, image_suffixes(images)) for images, _ in pairs), Counter[str]())
    lonely: list[Path] = []
    for images, masks in pairs:
        stems = by_stem(images, image_suffixes(images), "image")
        lonely += [path for stem, path in by_stem(masks, MASK_SUFFIXES, "mask").items() if stem not in stems]
    told = f"Skipped {counted(len(lonely), 'mask')} without an image, such as {lonely[0]}." if lonely else ""
    folders = sum(one.is_dir() and not one.name.startswith(".") for images, _ in pairs for one in images.iterdir())
    return joined(told, left_out(others, folders))


def paired(images: Path, masks: Path, classes: int, ignore_index: int = IGNORE_INDEX) -> MaskFiles:
    """Return images and masks matched and sorted by stem.

    Raises:
        DovetailError: An image has no mask.
    """
    found, labels = by_stem(images, image_suffixes(images), "image"), by_stem(masks, MASK_SUFFIXES, "mask")
    lonely = sorted(set(found) - set(labels))
    if lonely:
        refuse_missing_files(
            f"{len(lonely)} of {len(found)} images in {images} have no mask in {masks}, such as "
            f"{found[lonely[0]].name}; add {lonely[0]}.png there or remove the image.",
            [f"{found[stem]} has no mask in {masks}." for stem in lonely],
            left=len(found) - len(lonely),
        )
    stems = sorted(set(found) & set(labels))
    return MaskFiles(
        tuple(found[stem] for stem in stems), tuple(labels[stem] for stem in stems), classes, ignore_index=ignore_index
    )


def classes_of_masks(sets: Sequence[StoredMasks], classes: int | None, label_map: LabelMap | None) -> tuple[int, str]:
    """Return the number of classes, and a sentence about the labels if they were counted.

    Raises:
        DovetailError: The labels cannot be class numbers, or `classes` is less than the label map has.
    """
    named = (
        max((target for target in label_map.targets if target != sets[0].ignore_index), default=-1) + 1
        if label_map
        else 0
    )
    if label_map is not None and label_map.names:
        if classes not in (None, ANY_LABEL, named):
            raise OptionsError(f"classes is {classes}, but the label map has {named}; omit --classes.")
        return named, ""
    if classes:
        return classes, ""
    found = labels_in(sets)
    found.check()
    return max(found.classes, named), str(found)


def names_of(count: int, label_map: LabelMap | None) -> tuple[str, ...]:
    """Return the class names of a label map, or else numbers."""
    return label_map.names if label_map is not None and label_map.names else numbers(count)


def told_of_names(label_map: LabelMap | None) -> str:
    """Return how to name the classes if they have no names, or an empty string."""
    if label_map is not None and label_map.names:
        return ""
    return "The classes have no names; to name them, add --label-map FILE with a label and its name on each line."


def numbers(count: int) -> tuple[str, ...]:
    """Return numbers as class names."""
    return tuple(str(index) for index in range(count))
