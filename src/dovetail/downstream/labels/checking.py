"""`--check`: read a labelled set from end to end and list all that is wrong with it before a long run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Protocol

from dovetail.downstream.labels.coco import faults_of, find_coco
from dovetail.downstream.labels.coco_doubts import doubts_about_boxes, objects_at_edges
from dovetail.downstream.labels.counts import labels_in
from dovetail.downstream.labels.images import open_splits
from dovetail.downstream.labels.mask_sets import CocoMasks, SegmentationSet, StoredMasks, check_classes
from dovetail.downstream.labels.readers import ANY_LABEL, SegmentationData, open_segmentation
from dovetail.downstream.progress import progress
from dovetail.errors import DataError, DovetailError, MissingFilesError, counted


class Checkable(Protocol):
    """A set that can be asked for its faults."""

    def __len__(self) -> int: ...

    def faults(self, on_item: Callable[[int], None] | None = None) -> Iterator[str]: ...


def report_faults(sets: Sequence[tuple[str, Checkable]], known: Sequence[str] = ()) -> None:
    """Print one line for each fault of each named set, and how many images were read; faults that are `known` first.

    Raises:
        DataError: When there is any fault.
    """
    count, images = len(known), sum(len(data) for _, data in sets)
    print("".join(f"{fault}\n" for fault in known), end="")
    for name, data in sets:
        found: list[str] = []
        try:
            with progress(f"checking {name}", len(data)) as advance:
                for fault in data.faults(advance):
                    found.append(fault)
        finally:  # after Ctrl-C too; lines printed amid the bar would tear it
            print("".join(f"{name}: {fault}\n" for fault in found), end="")
        count += len(found)
    if count:
        raise DataError(
            f"Found {counted(count, 'fault')} in {counted(images, 'image')}, listed above; mend and check again."
        )
    print(f"No fault was found in {counted(images, 'image')}.")


def check_segmentation(data: str | Path, classes: int | None, ignore_index: int, label_map: Sequence[str] = ()) -> None:
    """Read a segmentation set and list its faults; without a number of `classes`, no label of a folder's mask is one.

    Raises:
        DovetailError: When there is any.
    """
    found = find_coco(Path(data))
    if found is not None:
        report_files([path for path in found if path is not None])
    with listing_missing():  # classes are not counted here, which would end at the first broken mask
        sets = open_segmentation(data, classes=classes or ANY_LABEL, ignore_index=ignore_index, label_map=label_map)
    if sets.note:
        print(sets.note)
    for part in (sets.train, sets.val):
        if isinstance(part, CocoMasks) and part.unmasked:
            many = counted(part.unmasked, "object")
            print(f"{part.coco.path}: {many} with a box but no mask; the pixels of their boxes do not count.")
    report_faults([("train", sets.train), ("held-out", sets.val)], faults_of_labels(sets, classes))


def faults_of_labels(sets: SegmentationData, classes: int | None) -> list[str]:
    """Print which labels the masks hold, and return a sentence where these cannot be class numbers."""
    masks = [part for part in (sets.train, sets.val) if isinstance(part, StoredMasks)]
    if sets.format not in ("folders", "datasets") or not masks:
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
    """Return a sentence for each part of a set whose masks hold too few classes to learn from or to measure on."""
    faults = []
    for part, purpose, least in ((sets.train, "learn from", 2), (sets.val, "measure on", 1)):
        masks = classes_in_masks(part)
        first = next(masks, None)
        if first is None:
            continue  # no mask can be read, which is told of each
        try:
            check_classes(part, chain([first], masks), purpose, least=least)
        except DataError as fault:
            faults.append(str(fault))
    return faults


def classes_in_masks(part: SegmentationSet) -> Iterator[Sequence[int]]:
    """Yield the classes in each mask that can be read; the others are told one by one."""
    for index in range(len(part)):
        try:
            found = part.classes_in(index)
        except DovetailError:
            continue
        yield found


@contextmanager
def listing_missing() -> Iterator[None]:
    """Print one line for each file that is found to be missing within, and end with how many."""
    try:
        yield
    except MissingFilesError as fault:
        for sentence in fault.faults:
            print(sentence)
        raise DataError(f"Missing {counted(len(fault.faults), 'file')}, listed above; add and check again.") from None


def report_files(paths: Sequence[Path]) -> None:
    """Print one line for each fault in the structure of COCO files.

    Raises:
        DataError: When there is any.
    """
    faults = [fault for path in paths for fault in faults_of(path)]
    for fault in faults:
        print(fault)
    if faults:
        raise DataError(f"Found {counted(len(faults), 'fault')} in the annotations, listed above; mend first.")


def check_detection(data: str | Path, task: str = "boxes") -> None:
    """Read a COCO set and list its faults as one for `task`, "boxes" or "masks".

    Raises:
        DovetailError: When there is any, or no such set.
    """
    from dovetail.downstream.detect.job import faults_of_objects, open_detection
    from dovetail.downstream.detect.loop import unmasked_objects

    found = find_coco(Path(data))
    if found is not None:
        report_files([path for path in found if path is not None])
    with listing_missing():
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
    report_faults([("train", train), ("held-out", val)], known)


def check_images(data: str | Path) -> None:
    """Read a classification set and list its faults.

    Raises:
        DovetailError: When there is any.
    """
    train, held_out, note = open_splits(data)
    if note:
        print(note)
    report_faults([("train", train), ("held-out", held_out)])
