"""Labelled Hugging Face datasets that were saved with `save_to_disk`, with one or several splits.

Classes come from the column of class labels (or a column "label" of numbers or strings), masks from a second image
column. Pixels are decoded from the bytes in the table, so that images are read as in every other format.

Format: https://huggingface.co/docs/datasets/process#save. The package is optional: dovetail-ssl[datasets].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from dovetail.data.hugging_face import image_columns, installed, undecoded
from dovetail.data.reading.decode import LazyImage, open_bytes
from dovetail.downstream.labels.class_sets import ClassSet, check_several
from dovetail.downstream.labels.counts import MOST_LISTED
from dovetail.downstream.labels.labelled import Labelled, check_labels, check_sizes, read_image_of_size, read_mask
from dovetail.downstream.labels.maps import LabelMap
from dovetail.downstream.labels.mask_sets import StoredMasks
from dovetail.downstream.labels.subsets import held_out, split_note
from dovetail.downstream.segment.metrics import IGNORE_INDEX
from dovetail.errors import DataError

HELD_OUT = ("validation", "val", "valid", "test")
LABELS = ("label", "labels", "fine_label")
IMAGES = ("image", "img", "pixel_values")
MASKS = ("mask", "annotation", "label", "labels", "segmentation_mask", "segmentation")


@dataclass(frozen=True, eq=False)
class SavedSplit:
    """Selected rows of a split.

    Attributes:
        name: Name of the split in error messages.
        table: A `datasets.Dataset` whose images are not decoded.
        rows: Indices of the rows.
    """

    name: str
    table: Any
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def called(self, index: int) -> str:
        """Return the name of an item for error messages."""
        return f"{self.name}[{self.rows[index]}]"

    def content(self, index: int, column: str) -> bytes:
        """Return the bytes of an image.

        Raises:
            DataError: The row has no image, or its file cannot be read.
        """
        value = self.table[self.rows[index]][column]
        if not value or (value.get("bytes") is None and not value.get("path")):
            raise DataError(f"{self.called(index)} has nothing in column {column!r}; remove the row.")
        if value["bytes"] is not None:
            found: bytes = value["bytes"]
            return found
        try:
            return Path(value["path"]).read_bytes()
        except OSError as error:
            raise DataError(
                f"{self.called(index)} names the file {value['path']}, which cannot be read ({error.strerror}); put it "
                "back, or save the set with its images embedded."
            ) from error

    def files(self) -> list[Path]:
        """Return the files of the table."""
        return sorted({Path(one["filename"]) for one in self.table.cache_files})

    def subset(self, indices: Sequence[int]) -> SavedSplit:
        """Return the items at `indices`."""
        return replace(self, rows=tuple(self.rows[index] for index in indices))


def open_saved(folder: Path) -> tuple[SavedSplit, SavedSplit, str]:
    """Return the training and validation splits of a saved dataset, and a note on them.

    Raises:
        DovetailError: The package is not installed, or the dataset is damaged or has no split "train".
    """
    datasets = installed(str(folder))
    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # Arrow raises almost anything on damaged files
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{folder} cannot be read as a saved dataset ({reason}); save it again.") from error
    if isinstance(saved, datasets.DatasetDict):
        if "train" not in saved:
            raise DataError(f"{folder} has the splits {', '.join(saved)}, but none named train; rename one.")
        splits = {name: undecoded(part) for name, part in saved.items()}
        train = SavedSplit(str(folder / "train"), splits["train"], tuple(range(len(splits["train"]))))
        held = next((name for name in HELD_OUT if name in splits and is_labelled(splits[name])), None)
        if held is not None:
            return train, SavedSplit(str(folder / held), splits[held], tuple(range(len(splits[held])))), ""
    else:
        train = SavedSplit(str(folder), undecoded(saved), tuple(range(len(saved))))
    kept, others = held_out(len(train))
    return train.subset(kept), train.subset(others), split_note(others, kept)


def label_columns(table: Any) -> list[str]:
    """Return the names of class columns: columns of class labels, or else numbers or strings with a usual name."""
    features = table.features
    found = [name for name, feature in features.items() if type(feature).__name__ == "ClassLabel"]
    plain = [name for name in LABELS if getattr(features.get(name), "dtype", "") in ("int64", "int32", "string")]
    return found or plain


def is_labelled(split: Any) -> bool:
    """Return whether a split has rows, and labels other than -1 (hidden labels)."""
    columns = label_columns(split)
    return len(split) > 0 and (not columns or any(label not in (-1, None) for label in split[columns[0]]))


def chosen(columns: Sequence[str], preferred: Sequence[str], what: str, split: SavedSplit) -> str:
    """Return the only column, or the one with a usual name.

    Raises:
        DataError: There is no column, or several and none has a usual name.
    """
    usual = [name for name in preferred if name in columns]
    if len(columns) == 1 or usual:
        return usual[0] if usual else columns[0]
    found = f"has several columns of {what} ({', '.join(columns)})" if columns else f"has no column of {what}"
    held = ", ".join(split.table.features)
    raise DataError(f"{split.name} {found} among {held}; save it with a column named {preferred[0]!r}.")


@dataclass(frozen=True, eq=False)
class SavedMasks(StoredMasks):
    """Images and masks of a split, which are read on demand.

    Attributes:
        split: Rows of the split.
        image: Name of the image column.
        mask: Name of the mask column.
        classes: Number of classes. Labels are 0 .. classes - 1.
        ignore_index: Label of ignored pixels.
        label_map: Classes of the values or colours in the masks, or None if the values are labels.
        channels: Number of channels of the images.
    """

    split: SavedSplit
    image: str
    mask: str
    classes: int
    ignore_index: int = IGNORE_INDEX
    label_map: LabelMap | None = None
    channels: int = 3

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Labelled:
        mask, content = self.raw_labels(index), self.split.content(index, self.image)
        image = read_image_of_size(self.split.called(index), mask.shape, content, channels=self.channels)
        check_sizes(image, mask, f"The mask of {self.split.called(index)}", "of the same row")
        check_labels(mask, self.classes, self.ignore_index, self.split.called(index))
        return Labelled(image, mask)

    def raw_labels(self, index: int) -> Tensor:
        content = self.split.content(index, self.mask)
        return read_mask(f"The mask of {self.split.called(index)}", content, self.label_map)

    def mask_name(self, index: int) -> str:
        return f"The mask of {self.split.called(index)}"

    def files(self) -> list[Path]:
        return self.split.files()

    def place(self) -> str:
        return f"in {self.split.name}"

    def subset(self, indices: list[int]) -> SavedMasks:
        return replace(self, split=self.split.subset(indices))

    def with_channels(self, channels: int) -> SavedMasks:
        return replace(self, channels=channels)


def saved_masks(
    folder: Path, classes: int, ignore_index: int, label_map: LabelMap | None = None
) -> tuple[SavedMasks, SavedMasks, str]:
    """Return the training and validation images of a saved dataset with their masks, and a note on them."""
    train, held, note = open_saved(folder)
    columns = image_columns(train.table)
    if len(columns) < 2:
        raise DataError(
            f"{train.name} has {len(columns)} columns of images, but segmentation needs two; save the images as "
            "'image' and their masks as 'mask', both with the feature Image."
        )
    mask = chosen([name for name in columns if name not in IMAGES], MASKS, "masks", train)
    image = chosen([name for name in columns if name != mask], IMAGES, "images", train)
    parts = [SavedMasks(split, image, mask, classes, ignore_index, label_map) for split in (train, held)]
    meaning = "labels are unchanged" if label_map is None else "labels are converted with the label map"
    words = f"Images are in column {image!r}, masks in column {mask!r}; {meaning}, {ignore_index} is ignored."
    return parts[0], parts[1], f"{note} {words}".strip()


@dataclass(frozen=True, eq=False)
class SavedClasses(ClassSet):
    """Images with classes of a split.

    Attributes:
        split: Rows of the split.
        image: Name of the image column.
        labels: Class of each image.
        names: Class names.
    """

    split: SavedSplit
    image: str
    labels: tuple[int, ...]
    names: tuple[str, ...]

    def open(self, index: int, channels: int) -> LazyImage:
        return open_bytes(self.split.content(index, self.image), channels)

    def called(self, index: int) -> str:
        return self.split.called(index)

    def place(self) -> str:
        return f"in {self.split.name}"

    def files(self) -> list[Path]:
        return self.split.files()

    def identity(self) -> str:
        return repr((self.split.name, self.split.table._fingerprint, self.split.rows))

    def subset(self, indices: list[int]) -> SavedClasses:
        return replace(self, split=self.split.subset(indices), labels=tuple(self.labels[index] for index in indices))


def saved_classes(folder: Path) -> tuple[SavedClasses, SavedClasses, str]:
    """Return the training and validation images of a saved dataset with their classes, and a note on them."""
    train, held, note = open_saved(folder)
    image = chosen(image_columns(train.table), IMAGES, "images", train)
    column = chosen(label_columns(train.table), LABELS, "classes", train)
    values = [raw_labels(split, column) for split in (train, held)]
    feature = train.table.features[column]
    names = getattr(feature, "names", None)
    if names is None and feature.dtype == "string":
        names = sorted(set(values[0]))
        values = [
            [index_in(names, value, split) for value in part] for part, split in zip(values, (train, held), strict=True)
        ]
    elif names is None:
        largest = max(max(part) for part in values)
        distinct = sorted({label for part in values for label in part})
        if len(distinct) * 2 > largest:
            names = [str(index) for index in range(largest + 1)]
        else:  # such as article numbers
            values = [[distinct.index(label) for label in part] for part in values]
            names = [str(label) for label in distinct]
            shown = ", ".join(names[:MOST_LISTED]) + (", ..." if len(names) > MOST_LISTED else "")
            words = f"Column {column!r} contains the numbers {shown}, which are used as class names."
            note = f"{note} {words}".strip()
    check_several(names, train.name)
    parts = [
        SavedClasses(split, image, tuple(labels), tuple(names))
        for split, labels in zip((train, held), values, strict=True)
    ]
    return parts[0], parts[1], note


def raw_labels(split: SavedSplit, column: str) -> list[Any]:
    """Return the labels of a split's rows.

    Raises:
        DataError: A row has no label, or the label -1 (hidden labels).
    """
    every = list(split.table[column])
    found = [every[row] for row in split.rows]
    for index, label in enumerate(found):
        if label is None or (isinstance(label, int) and label < 0):
            raise DataError(f"{split.called(index)} has label {label} in column {column!r}; remove such rows.")
    return found


def index_in(names: Sequence[str], value: str, split: SavedSplit) -> int:
    """Return the index of a class. Raise `DataError` if it does not occur in the training images."""
    if value not in names:
        raise DataError(
            f"{split.name} has class {value!r}, which the training images lack; use the same classes in both."
        )
    return names.index(value)
