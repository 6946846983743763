"""COCO instance JSON: images, boxes, polygons, run-length masks, crowds.

Supported quirks: images without annotations; objects with several polygons; polygons with fewer than three points,
which are skipped; compressed and plain run-lengths; crowds, which are ignored in the evaluation; boxes without area,
which are not trained on; category ids with gaps; missing fields.

Format: https://cocodataset.org/#format-data
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import faster_coco_eval.core.mask as coco_mask

from dovetail.data.folders import with_slashes
from dovetail.data.reading.archives import refused_name
from dovetail.downstream.labels.coco_faults import Lists, faults_of_lists, faults_of_objects_in, make_whole
from dovetail.downstream.labels.coco_object import CocoImage, CocoObject, as_run_length
from dovetail.downstream.labels.missing import refuse_missing_files
from dovetail.downstream.progress import progress
from dovetail.errors import DataError, DovetailError, counted
from dovetail.files.schema import misfits, quoted, read_json

MAX_BYTES = 1 << 32
LOOKED_FOR = 1000  # number of images to look for when searching for the image folder


@dataclass(frozen=True)
class CocoSet:
    """All images of a COCO file. Use `CocoSet.open` to create it.

    Attributes:
        path: Path of the JSON file.
        images: Images in the order of the file.
        names: Category names by label.
        ids: Category ids in the file by label.
        content: Hashes that identify the images and labels of a dataset that has no files.
    """

    path: Path
    images: tuple[CocoImage, ...]
    names: tuple[str, ...]
    ids: tuple[int, ...]
    content: tuple[str, ...] = ()

    @classmethod
    def open(cls, path: Path, folder: Path | None = None) -> CocoSet:
        """Read a JSON file.

        Args:
            path: Path of the file.
            folder: Folder of the images. By default, it is searched for near the file.

        Raises:
            DataError: The file has a fault. `faults_of` lists all faults.
        """
        with progress(f"reading {path.name}", None):
            content, faults = parse(path)
            if faults:
                raise DataError(faults[0])
            return build(path, content, folder)

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: list[int]) -> CocoSet:
        """Return a dataset of the images at `indices`, in that order."""
        return replace(self, images=tuple(self.images[index] for index in indices))

    def faults(self, on_item: Callable[[int], None] | None = None) -> Iterator[str]:
        """Read all images and yield a sentence for each fault of an image or an object."""
        for image in self.images:
            yield from faults_of_image(image)
            if on_item is not None:
                on_item(1)


def faults_of_image(image: CocoImage) -> Iterator[str]:
    """Yield the faults of an image file and its objects."""
    try:
        image.pixels()
    except DovetailError as error:
        yield str(error)
    yield from faults_of_objects_in(image)


def faults_of(path: Path) -> list[str]:
    """Return a sentence for each fault in the structure of a file, which `CocoSet.open` would reject."""
    with progress(f"checking {path.name}", None):
        return parse(path)[1]


def parse(path: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the content of a file, and a sentence for each of its faults."""
    try:
        content = read_json(path, "write the file again", most_bytes=MAX_BYTES, raises=DataError)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); specify a COCO JSON file.") from error
    odd = next(misfits(content, Lists), None)
    if odd is not None:
        return {}, [f"{path} {odd}; COCO instance files contain lists of images, annotations and categories."]
    make_whole(content)
    return content, [*faults_of_lists(path, content)]


def build(path: Path, content: Mapping[str, Any], folder: Path | None) -> CocoSet:
    """Return the dataset of a file without faults."""
    categories = sorted(content["categories"], key=lambda one: one["id"])
    labels = {one["id"]: label for label, one in enumerate(categories)}
    objects: dict[int, list[CocoObject]] = {}
    sizes = {one["id"]: (int(one["height"]), int(one["width"])) for one in content["images"]}
    for one in content["annotations"]:
        found = object_of(one, labels[one["category_id"]], sizes[one["image_id"]])
        objects.setdefault(one["image_id"], []).append(found)
    names = [with_slashes(one["file_name"]) for one in content["images"]]
    odd = next((name for name in names if refused_name(name)), None)
    if odd is not None:
        raise DataError(
            f"{path} names an image outside its folder ({quoted(odd)}); write names relative to the folder."
        )
    where = folder if folder is not None else images_folder(path, names)
    images = tuple(
        CocoImage(
            one["id"],
            where / name,
            int(one["width"]),
            int(one["height"]),
            tuple(objects.get(one["id"], ())),
        )
        for one, name in zip(content["images"], names, strict=True)
    )
    labelled, ids = tuple(str(one["name"]) for one in categories), tuple(labels)
    return CocoSet(path, images, labelled, ids)


def object_of(one: Mapping[str, Any], label: int, size: tuple[int, int]) -> CocoObject:
    """Convert an annotation. A missing box or area is computed from the mask."""
    segmentation = one.get("segmentation") or None
    if isinstance(segmentation, list):  # two points have no area, and four numbers would be read as a box
        segmentation = [points for points in segmentation if len(points) >= 6] or None
    box = one.get("bbox")
    area = one.get("area")
    coded = as_run_length(segmentation, *size) if not box or area is None else None
    if not box:
        box = [float(value) for value in coco_mask.toBbox(coded)] if coded is not None else [0.0, 0.0, 0.0, 0.0]
    if area is None:
        area = float(coco_mask.area(coded)) if coded is not None else box[2] * box[3]
    left, top, width, height = (float(value) for value in box)
    return CocoObject(
        int(one["id"]), label, (left, top, width, height), segmentation, float(area), bool(one.get("iscrowd"))
    )


def with_files(*sets: CocoSet) -> list[CocoSet]:
    """Return the datasets. Raise `MissingFilesError` if images are missing, or leave them out while collected."""
    missing = [(data.path, image.path) for data in sets for image in data.images if not image.path.is_file()]
    lost = {path for _, path in missing}
    there = [[index for index, image in enumerate(data.images) if image.path not in lost] for data in sets]
    if missing:
        refuse_missing_files(
            f"{missing[0][0]}: there is no file for {counted(len(missing), 'image')}, such as {missing[0][1]}; add "
            "the missing files.",
            [f"{image} is missing, but {path} names it." for path, image in missing],
            left=min(map(len, there)),
        )
    return [data.subset(kept) for data, kept in zip(sets, there, strict=True)] if missing else [*sets]


def images_folder(path: Path, names: list[str]) -> Path:
    """Return the folder of a file's images: next to the file, or in the usual folders of COCO or of other exports.

    Raises:
        DataError: The images are in none of these folders.
    """
    split = path.stem.removeprefix("instances_")
    beside = [path.parent, path.parent / "images", path.parent / split]
    above = [path.parent.parent / split, path.parent.parent / "images" / split, path.parent.parent / "images"]
    places = [*beside, *above, path.parent.parent]
    for place in places:
        if any((place / name).is_file() for name in names[:LOOKED_FOR]):
            return place
    tried = ", ".join(str(place) for place in places[:5])
    raise DataError(f"The images of {path}, such as {names[0]}, are not in {tried}; move them there.")


def find_coco(data: Path) -> tuple[Path, Path | None] | None:
    """Return the training and validation files of a COCO dataset, or None if `data` is not one.

    A file is a training set without validation. A folder contains annotations/instances_train*.json and
    instances_val*.json, or train.json and val.json there or in the folder itself, or Roboflow's
    train/_annotations.coco.json and valid/_annotations.coco.json. A single file with another name is accepted, too,
    unless the folder has masks or was saved by `datasets`.
    """
    if data.is_file() and data.suffix.lower() == ".json":
        return data, None
    parts = [data / split / "_annotations.coco.json" for split in ("train", "valid", "test")]
    if parts[0].is_file():
        return parts[0], next((part for part in parts[1:] if part.is_file()), None)
    for folder in (data / "annotations", data):
        if not folder.is_dir():
            continue
        files = sorted(folder.glob("*.json"), key=lambda one: (not one.name.startswith("instances_"), one.name))
        train = next((one for one in files if "train" in one.name), None)
        val = next((one for one in files if "val" in one.name), None)
        if train is not None:
            return train, val
        if (
            len(files) == 1
            and not any((data / inner / "masks").is_dir() for inner in (".", "train"))
            and files[0].name not in ("dataset_dict.json", "state.json")
        ):
            return files[0], None
    return None
