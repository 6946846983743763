"""`--check`: reads a labelled dataset completely and lists all faults before a long run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Protocol

from dovetail.downstream.labels.coco import faults_of, find_coco
from dovetail.downstream.labels.coco_doubts import doubts_about_boxes, objects_at_edges
from dovetail.downstream.labels.counts import labels_in
from dovetail.downstream.labels.given import is_given
from dovetail.downstream.labels.images import open_splits
from dovetail.downstream.labels.mask_sets import CocoMasks, SegmentationSet, StoredMasks, check_classes
from dovetail.downstream.labels.missing import collecting_missing
from dovetail.downstream.labels.readers import ANY_LABEL, SegmentationData, open_segmentation
from dovetail.downstream.progress import progress
from dovetail.errors import DataError, DovetailError, MissingFilesError, counted


class Checkable(Protocol):
    """A dataset that can be checked for faults."""

    def __len__(self) -> int: ...

    def faults(self, on_item: Callable[[int], None] | None = None) -> Iterator[str]: ...


def report_faults(sets: Sequence[tuple[str, Checkable]], known: Sequence[str] = (), *, missing: int = 0) -> None:
    """Print a line for each fault of the datasets, and the number of images.

    Args:
        sets: Datasets by name.
        known: Faults of the datasets as a whole, which come first.
        missing: Number of missing files, which are listed already.

    Raises:
        DataError: The datasets have faults.
    """
    images = sum(len(data) for _, data in sets)
    faulty = 0
    print("".join(f"{fault}\n" for fault in known), end="")
    for name, data in sets:
        faulty += faulty_images(name, data)
    if known or faulty or missing:
        raise DataError(told_of_faults(len(known), faulty, images, missing))
    print(f"Found no faults in {counted(images, 'image')}.")


def faulty_images(name: str, data: Checkable) -> int:
    """Print a line for each fault of a dataset, and return the number of images that have some."""
    found: list[str] = []
    ends: list[int] = [0]  # number of faults after each image
    try:
        with progress(f"checking {name}", len(data)) as advance:

            def next_image(count: int) -> None:
                ends.append(len(found))
                advance(count)

            for fault in data.faults(next_image):
                found.append(fault)
    finally:  # also after Ctrl-C; lines printed while the bar is shown would break it
        print("".join(f"{name}: {fault}\n" for fault in found), end="")
    ends.append(len(found))  # a sequence of images may have ended early
    return sum(after > before for before, after in pairwise(ends))


def told_of_faults(of_dataset: int, faulty: int, images: int, missing: int = 0) -> str:
    """Return how many problems a dataset has as a whole, how many of its images have some, and how many files miss.

    >>> told_of_faults(0, 1, 64)
    '1 of 64 images has a problem (listed above); correct or remove it, and check again.'
    >>> told_of_faults(0, 2, 63, missing=1)
    'Missing 1 file, and 2 of 63 images have problems (listed above); add and correct them, and check again.'
    """
    if missing:
        lost = f"Missing {counted(missing, 'file')}"
        if not of_dataset and not faulty:
            return f"{lost} (listed above); add {'it' if missing == 1 else 'them'}, and check again."
        others = told_of_faults(of_dataset, faulty, images).partition(" (listed")[0]
        return f"{lost}, and {others[0].lower()}{others[1:]} (listed above); add and correct them, and check again."
    whole = f"The dataset has {counted(of_dataset, 'problem')}"
    have = "has a problem" if faulty == 1 else "have problems"
    single = f"{faulty:,} of {counted(images, 'image')} {have}"
    both = f"{whole}, and {single}" if of_dataset and faulty else whole if of_dataset else single
    it = "it" if of_dataset + faulty == 1 else "them"
    return f"{both} (listed above); correct {it if of_dataset else f'or remove {it}'}, and check again."


def check_segmentation(
    data: Any, classes: int | None, ignore_index: int, label_map: Sequence[str] = (), *, channels: int = 3
) -> None:
    """Read a segmentation dataset and list its faults. Without `classes`, all labels in folders of masks are valid.

    Raises:
        DovetailError: The dataset has faults.
    """
    found = None if is_given(data) else find_coco(Path(data))
    if found is not None:
        report_files([path for path in found if path is not None])
    with listing_missing() as missing:  # classes are not counted here, which would end at the first broken mask
        sets = open_segmentation(data, classes=classes or ANY_LABEL, ignore_index=ignore_index, label_map=label_map)
    sets = sets.with_channels(channels)
    if sets.note:
        print(sets.note)
    for part in (sets.train, sets.val):
        if isinstance(part, CocoMasks) and part.unmasked:
            many = counted(part.unmasked, "object")
            print(f"{part.coco.path}: {many} with a box but no mask; the pixels of their boxes are ignored.")
    report_faults(
        [("train", sets.train), ("held-out", sets.val)], faults_of_labels(sets, classes), missing=len(missing)
    )


def faults_of_labels(sets: SegmentationData, classes: int | None) -> list[str]:
    """Print which labels the masks hold, and return a sentence where these cannot be class numbers."""
    masks = [part for part in (sets.train, sets.val) if isinstance(part, StoredMasks)]
    if sets.format not in ("folders", "datasets", "given") or not masks:
        return []
    found = labels_in(masks, skip_faults=True)
    if not found.labels and not found.ignored:
        return []  # no mask can be read, which is told of each
    print(found)
    named = sets.label_map is not None and bool(sets.label_map.names)
    try:
        found.check(classes_given=bool(classes) or named)
    except DovetailError as fault:
        return [str(fault)]
    return faults_of_parts(sets)


def faults_of_parts(sets: SegmentationData) -> list[str]:
    """Return a sentence for each part of a dataset whose masks have too few classes for training or evaluation."""
    faults = []
    for part, purpose, least in ((sets.train, "training", 2), (sets.val, "evaluation", 1)):
        masks = classes_in_masks(part)
        first = next(masks, None)
        if first is None:
            continue  # unreadable masks are reported one by one
        try:
            check_classes(part, chain([first], masks), purpose, least=least)
        except DataError as fault:
            faults.append(str(fault))
    return faults


def classes_in_masks(part: SegmentationSet) -> Iterator[Sequence[int]]:
    """Yield the classes in each readable mask. Unreadable masks are reported one by one."""
    for index in range(len(part)):
        try:
            found = part.classes_in(index)
        except DovetailError:
            continue
        yield found


@contextmanager
def listing_missing() -> Iterator[list[str]]:
    """Print one line for each file that is found to be missing within. End with how many if no image is complete."""
    with collecting_missing() as missing:
        try:
            yield missing
        except MissingFilesError as fault:
            missing += fault.faults
            raise DataError(told_of_faults(0, 0, 0, len(missing))) from None
        finally:
            print("".join(f"{sentence}\n" for sentence in missing), end="")


def report_files(paths: Sequence[Path]) -> None:
    """Print a line for each fault in the structure of COCO files.

    Raises:
        DataError: The files have faults.
    """
    faults = [fault for path in paths for fault in faults_of(path)]
    for fault in faults:
        print(fault)
    if faults:
        raise DataError(f"Found {counted(len(faults), 'fault')} in the annotations, listed above; correct them first.")


def check_detection(data: Any, task: str = "boxes") -> None:
    """Read a COCO dataset and list its faults for `task`, "boxes" or "masks".

    Raises:
        DovetailError: The dataset has faults, or `data` is not a COCO dataset.
    """
    from dovetail.downstream.detect.job import faults_of_objects, open_detection
    from dovetail.downstream.detect.loop import unmasked_objects

    found = None if is_given(data) else find_coco(Path(data))
    if found is not None:
        report_files([path for path in found if path is not None])
    with listing_missing() as missing:
        train, val, note = open_detection(data)
    if note:
        print(note)
    for part in (train, val):
        if sentence := objects_at_edges(part, with_masks=task == "masks", learned=part is train):
            print(sentence)
    known = [*faults_of_objects(train, val, task), *doubts_about_boxes(train)]
    if val.path != train.path:
        known += doubts_about_boxes(val)
    if task == "masks" and not known and (sentence := unmasked_objects(train)):
        print(sentence)
    report_faults([("train", train), ("held-out", val)], known, missing=len(missing))


def check_images(data: Any) -> None:
    """Read a classification dataset and list its faults.

    Raises:
        DovetailError: The dataset has faults.
    """
    train, held_out, note = open_splits(data)
    if note:
        print(note)
    parts = [("train", train), ("held-out", held_out)]
    empty = [f"{name}: {fault}" for name, part in parts for fault in part.faults_of_classes()]
    report_faults(parts, empty)
