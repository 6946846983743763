"""Labelled sets for segmentation as their makers hand them out; the format is told by the folders.

* VOC 2012: palette masks, 255 is void; with SegmentationClassAug and trainaug.txt, the augmented training set.
* ADE20K (ADEChallengeData2016): label 0 is "other" and does not count, 1 .. 150 become 0 .. 149.
* Cityscapes: labelTrainIds as they are, else labelIds, of which 19 of 34 count.
* Images beside masks: images/ and masks/ (with or without train/ and val/ in them), or train/images and train/masks.
* Hugging Face's `datasets`, saved with `save_to_disk`: a column of images and a column of masks, labels as they are.
* COCO JSON: categories become 1 .. K, what no object covers is class 0, "background"; the smaller object is on top.

Shapes: H x W pixels.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from dovetail.data.folders import left_out, with_slashes
from dovetail.data.hugging_face import is_saved
from dovetail.data.reading.peaks import told_of_values
from dovetail.data.reading.values import value_range
from dovetail.downstream.labels.arrow import saved_masks
from dovetail.downstream.labels.coco import CocoSet, check_files, find_coco
from dovetail.downstream.labels.coco_doubts import undrawn_masks
from dovetail.downstream.labels.counts import labels_in
from dovetail.downstream.labels.labelled import IMAGE_SUFFIXES, MASK_SUFFIXES, by_stem, existing, others_in
from dovetail.downstream.labels.maps import LabelMap, read_label_map
from dovetail.downstream.labels.mask_sets import CocoMasks, MaskFiles, SegmentationSet, StoredMasks
from dovetail.downstream.labels.names import CITYSCAPES_IDS, CITYSCAPES_NAMES, VOC_NAMES
from dovetail.downstream.labels.subsets import held_out, split_note
from dovetail.downstream.segment.metrics import IGNORE_INDEX
from dovetail.errors import DataError, MissingFilesError, OptionsError, counted

ANY_LABEL = 2**16  # classes to give where labels are not to be looked at: as many as a 16-bit mask can hold


@dataclass(frozen=True)
class SegmentationData:
    """A labelled set, read.

    Attributes:
        format: "voc", "ade20k", "cityscapes", "folders", "coco" or "datasets".
        train: Images to learn from.
        val: Images to measure on.
        classes: Number of classes.
        names: Of the classes; numbers where none are known.
        note: What to know about the split, or nothing.
        label_map: What the values or colours in the files mean; None where they are labels.
    """

    format: str
    train: SegmentationSet
    val: SegmentationSet
    classes: int
    names: tuple[str, ...]
    note: str = ""
    label_map: LabelMap | None = None


def open_segmentation(
    data: str | Path,
    *,
    classes: int | None = None,
    ignore_index: int = IGNORE_INDEX,
    label_map: Sequence[str] = (),
) -> SegmentationData:
    """Return the set at `data`, whose format is told by what is there.

    Args:
        data: A folder, or a COCO JSON file.
        classes: Number of classes, for images beside masks; counted by reading all masks unless given.
        ignore_index: Label of pixels that do not count, for images beside masks; -1 for none.
        label_map: What the values or colours of the masks mean, for images beside masks; see
            `dovetail.downstream.labels.maps`.

    Raises:
        DovetailError: For a folder of no known format, and where images lack masks.
    """
    folder = existing(data)
    meaning = read_label_map(label_map, ignore_index)
    if is_saved(folder):
        return open_saved_masks(folder, classes, ignore_index, meaning)
    for opened in FORMATS.values():
        found = opened(folder)
        if found is not None:
            if classes not in (None, ANY_LABEL, found.classes):
                raise OptionsError(f"classes is {classes}, but {folder} has {found.classes}; leave --classes out.")
            if ignore_index != IGNORE_INDEX:
                raise OptionsError(f"{folder} has its own label for what does not count; leave --ignore-index out.")
            if meaning is not None:
                raise OptionsError(f"{folder} has labels of its own; leave --label-map out.")
            return found
    return open_folders(folder, classes, ignore_index, meaning)


def open_saved_masks(
    data: Path, classes: int | None, ignore_index: int, label_map: LabelMap | None
) -> SegmentationData:
    """Return a set that Hugging Face's `datasets` saved on disk, with a column of images and one of masks."""
    train, val, note = saved_masks(data, classes or 0, ignore_index, label_map)
    count, found = classes_of_masks([train, val], classes, label_map)
    parts = [replace(part, classes=count) for part in (train, val)]
    return SegmentationData(
        "datasets", parts[0], parts[1], count, names_of(count, label_map), joined(note, found), label_map
    )


def open_voc(data: Path) -> SegmentationData | None:
    """Return VOC's segmentation set in `data`, or in the VOCdevkit/VOC2012 or VOC2012 in it; None for others."""
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
    """Return the training and the held-out part; raise `MissingFilesError` with the missing files of both."""
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
    """Return the images that a list names: one stem a line, or the paths of image and mask."""
    if not names.is_file():
        raise DataError(f"There is no list {names}; VOC's sets have one.")
    try:
        lines = names.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{names} cannot be read as a list ({error}); write one stem a line.") from error
    entries = [Path(with_slashes(line.split()[0])) for line in lines if line.strip()]
    stems = [entry.stem if entry.suffix.lower() in IMAGE_SUFFIXES else entry.name for entry in entries]
    images = tuple(root / "JPEGImages" / f"{stem}.jpg" for stem in stems)
    return checked(MaskFiles(images, tuple(masks / f"{stem}.png" for stem in stems), len(VOC_NAMES)), str(names))


def checked(files: MaskFiles, where: str) -> MaskFiles:
    """Return `files`; raise `DataError` where one of them is missing."""
    if not files.images:
        raise DataError(f"{where} names no image; give at least one.")
    missing = [path for path in files.files() if not path.is_file()]
    if missing:
        raise MissingFilesError(
            f"{where}: missing {counted(len(missing), 'file')}, such as {missing[0]}; add what is missing.",
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
    """Return Cityscapes' fine annotations; None for others."""
    if not (data / "leftImg8bit").is_dir() or not (data / "gtFine").is_dir():
        return None
    splits = both(*(partial(cityscapes_split, data, split) for split in ("train", "val")))
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
    train = with_masks(CocoSet.open(found[0]))
    names, note = ("background", *train.coco.names), undrawn_masks(train.coco)
    if found[1] is None:
        check_files(train.coco)
    else:
        val = with_masks(CocoSet.open(found[1]))
        check_files(train.coco, val.coco)
        if val.coco.names != train.coco.names:
            raise DataError(f"{found[1]} has other categories than {found[0]}; give both the same list.")
        return SegmentationData("coco", train, val, len(names), names, joined(note, undrawn_masks(val.coco)))
    kept, held = held_out(len(train))
    note = joined(split_note(held, kept), note)
    return SegmentationData("coco", train.subset(kept), train.subset(held), len(names), names, note)


def joined(*sentences: str) -> str:
    """Return the sentences that are not empty as one text."""
    return " ".join(sentence for sentence in sentences if sentence)


def with_masks(coco: CocoSet) -> CocoMasks:
    """Return a COCO set as semantic masks; raise `DataError` where no object has a mask, or labels do not reach."""
    if len(coco.names) >= IGNORE_INDEX:  # label 0 is background
        raise DataError(
            f"{coco.path} has {len(coco.names)} categories; segmentation tells {IGNORE_INDEX - 1} apart, so leave out "
            "the seldom ones."
        )
    if not any(one.segmentation is not None for image in coco.images for one in image.objects):
        raise DataError(f"{coco.path} holds no mask; segmentation needs objects with polygons or run-lengths.")
    return CocoMasks(coco)


FORMATS: Mapping[str, Callable[[Path], SegmentationData | None]] = {
    "voc": open_voc,
    "ade20k": open_ade20k,
    "cityscapes": open_cityscapes,
    "coco": open_coco,
}
"""Formats with labels of their own, in the order in which they are tried; each returns None for others."""


def open_folders(
    data: Path, classes: int | None, ignore_index: int, label_map: LabelMap | None = None
) -> SegmentationData:
    """Return images beside masks, split as the folders say, or with a fixed fifth held out."""
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
                f"{data} is no set that is known: neither VOC, ADE20K, Cityscapes, a COCO JSON file, a saved Hugging "
                "Face dataset nor a folder 'images' beside a folder 'masks'."
            )
        files = replace(paired(data / "images", data / "masks", classes or 0, ignore_index), label_map=label_map)
        count, found = classes_of_masks([files], classes, label_map)
        files = replace(files, classes=count)
        kept, held = held_out(len(files))
        parts = [files.subset(kept), files.subset(held)]
        note = joined(split_note(held, kept), surplus((data / "images", data / "masks")))
    names = names_of(count, label_map)
    told = told_of_values(parts[0].images, value_range())
    return SegmentationData("folders", parts[0], parts[1], count, names, joined(note, found, told), label_map)


def surplus(*pairs: tuple[Path, Path]) -> str:
    """Return sentences on masks without an image and files that are not read, in pairs of folders of images and masks;
    nothing for none."""
    others = sum((others_in(images, IMAGE_SUFFIXES) for images, _ in pairs), Counter[str]())
    lonely: list[Path] = []
    for images, masks in pairs:
        stems = by_stem(images, IMAGE_SUFFIXES, "image")
        lonely += [path for stem, path in by_stem(masks, MASK_SUFFIXES, "mask").items() if stem not in stems]
    told = f"Left out: {counted(len(lonely), 'mask')} without an image, such as {lonely[0]}." if lonely else ""
    folders = sum(one.is_dir() and not one.name.startswith(".") for images, _ in pairs for one in images.iterdir())
    return joined(told, left_out(others, folders))


def paired(images: Path, masks: Path, classes: int, ignore_index: int = IGNORE_INDEX) -> MaskFiles:
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
    return MaskFiles(
        tuple(found[stem] for stem in stems), tuple(labels[stem] for stem in stems), classes, ignore_index=ignore_index
    )


def classes_of_masks(sets: Sequence[StoredMasks], classes: int | None, label_map: LabelMap | None) -> tuple[int, str]:
    """Return the number of classes, and a sentence on the labels where all masks had to be read for it.

    Raises:
        DovetailError: For labels that cannot be class numbers, and fewer classes than the label map names.
    """
    named = (
        max((target for target in label_map.targets if target != sets[0].ignore_index), default=-1) + 1
        if label_map
        else 0
    )
    if label_map is not None and label_map.names:
        if classes not in (None, ANY_LABEL, named):
            raise OptionsError(f"classes is {classes}, but the label map names {named}; leave --classes out.")
        return named, ""
    if classes:
        return classes, ""
    found = labels_in(sets)
    found.check()
    return max(found.classes, named), str(found)


def names_of(count: int, label_map: LabelMap | None) -> tuple[str, ...]:
    """Return the names that a label map gives, else numbers."""
    return label_map.names if label_map is not None and label_map.names else numbers(count)


def numbers(count: int) -> tuple[str, ...]:
    """Return names for classes that have none."""
    return tuple(str(index) for index in range(count))
