"""Labelled datasets that are passed in Python: map-style datasets as those of torchvision.

    classes:  (image, class) or {"image": ..., "label": ...}
    masks:    (image, mask) or {"image": ..., "mask": ...}
    objects:  (image, target) or {"image": ..., "target": ...}; a target is {"boxes": [N, 4], "labels": [N], "masks":
              [N, H, W]} (left, top, right, bottom in pixels; masks are optional), or a list of COCO annotations

The image is as in pre-training (`dovetail.data.items`). A mask is a Pillow image, an array or a tensor of integers
[H, W] or [1, H, W]. Datasets of `torchvision.datasets` and their `wrap_dataset_for_transforms_v2` have these forms.

Shapes: N objects, H x W pixels.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from dovetail.data.items import image_in, opened_item
from dovetail.data.reading.decode import LazyImage, UnreadableError
from dovetail.data.reading.values import all_levels
from dovetail.downstream.labels.class_sets import ClassSet, check_several
from dovetail.downstream.labels.labelled import Labelled, check_labels, check_sizes, faults_named
from dovetail.downstream.labels.maps import LabelMap
from dovetail.downstream.labels.mask_sets import StoredMasks
from dovetail.downstream.labels.subsets import held_out, split_note
from dovetail.downstream.progress import progress
from dovetail.downstream.segment.metrics import IGNORE_INDEX
from dovetail.errors import DataError

HELD_OUT = ("val", "valid", "validation", "test")
LABELS = ("label", "labels", "class", "target", "fine_label")
MASKS = ("mask", "masks", "annotation", "label", "target", "segmentation_mask")
SAMPLED = 64  # number of items whose content identifies a dataset


def is_given(data: Any) -> bool:
    """Return whether `data` is a dataset, or several by split, and not a path."""
    return not isinstance(data, str | Path)


@dataclass(frozen=True, eq=False)
class Given:
    """Selected items of a dataset.

    Attributes:
        name: Name of the dataset in messages.
        dataset: Dataset with `__len__` and `__getitem__`.
        rows: Indices of the items.
    """

    name: str
    dataset: Any
    rows: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def called(self, index: int) -> str:
        """Return the name of an item in messages."""
        return f"{self.name}[{self.rows[index]}]"

    def item(self, index: int) -> Any:
        """Return an item. Raise `DataError` if the dataset raises an exception."""
        try:
            return self.dataset[self.rows[index]]
        except Exception as error:  # user code may raise anything
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            raise DataError(f"{self.called(index)} cannot be read ({reason}); correct the dataset.") from error

    def label(self, index: int, item: Any, names: Sequence[str], what: str) -> Any:
        """Return the label of an item: its second element, or the value under one of the `names`.

        Raises:
            DataError: The item has no label.
        """
        if isinstance(item, Mapping):
            found = next((name for name in names if name in item), None)
            if found is not None:
                return item[found]
            held = f"the keys {', '.join(map(str, item))}"
        elif isinstance(item, tuple | list):
            if len(item) > 1:
                return item[1]
            held = f"{len(item)} element"
        else:
            held = f"only a {type(item).__name__}"
        raise DataError(
            f"{self.called(index)} has {held}, but needs {what}; return (image, {names[0]}) or a dictionary with image "
            f"and {names[0]}."
        )

    def image(self, index: int, item: Any, channels: int = 3) -> LazyImage:
        """Open the image of an item. Raise `UnreadableError` if it cannot be read."""
        return opened_item(image_in(item), channels)

    def pixels(self, index: int, item: Any, channels: int = 3) -> Tensor:
        """Return the image of an item as [C, H, W] in 0 to 255. Raise `DataError` if it cannot be read."""
        with faults_named(self.called(index)), all_levels():
            return self.image(index, item, channels).decode(1).contiguous()

    def subset(self, indices: Sequence[int]) -> Given:
        """Return the items at `indices`."""
        return replace(self, rows=tuple(self.rows[index] for index in indices))

    def mark(self) -> str:
        """Return a hash of the number of items and of the content of some items, evenly spaced."""
        found = hashlib.sha256(str(len(self)).encode())
        for place in sorted({round(step * (len(self) - 1) / (SAMPLED - 1)) for step in range(SAMPLED)}):
            item = self.item(place)
            found.update(np.ascontiguousarray(self.pixels(place, item)).tobytes())
            found.update(plain_bytes(item[1:] if isinstance(item, tuple | list) else item))
        return found.hexdigest()[:16]


def plain_bytes(value: Any) -> bytes:
    """Return the content of a label as bytes."""
    if isinstance(value, Tensor | np.ndarray | Image.Image):
        return np.ascontiguousarray(value).tobytes()
    if isinstance(value, Mapping):
        return b"".join(str(key).encode() + plain_bytes(one) for key, one in value.items())
    if isinstance(value, tuple | list):
        return b"".join(map(plain_bytes, value))
    return repr(value).encode()


def open_given(data: Any) -> tuple[Given, Given, str]:
    """Return the training and validation items, and a note on the split.

    Args:
        data: A dataset, of which a fixed fifth is held out, or a dictionary with the datasets "train" and "val" (or
            "valid", "validation" or "test").

    Raises:
        DataError: A split is missing or empty, or `data` is not a map-style dataset.
    """
    if not isinstance(data, Mapping):
        whole = given(data, type(data).__name__)
        kept, others = held_out(len(whole))
        return whole.subset(kept), whole.subset(others), split_note(others, kept)
    held = next((name for name in HELD_OUT if name in data), None)
    if "train" not in data or held is None:
        raise DataError(
            f"The data has the splits {', '.join(map(str, data)) or 'none'}, but needs train and val; pass "
            '{"train": dataset, "val": dataset}.'
        )
    return given(data["train"], "train"), given(data[held], held), ""


def given(dataset: Any, name: str) -> Given:
    """Return all items of a dataset. Raise `DataError` if it is not a map-style dataset, or empty."""
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        raise DataError(
            f"The data is a {type(dataset).__name__}; pass a path, or a map-style dataset with __len__ and __getitem__."
        )
    if len(dataset) == 0:
        raise DataError(f"The dataset {name} is empty; pass at least one item.")
    return Given(name, dataset, tuple(range(len(dataset))))


def names_in(dataset: Any) -> tuple[str, ...]:
    """Return the class names of a dataset: its attribute `classes`, as in torchvision; () without it."""
    names = getattr(dataset, "classes", None)
    return tuple(map(str, names)) if isinstance(names, list | tuple) else ()


@dataclass(frozen=True, eq=False)
class GivenMasks(StoredMasks):
    """Images and masks of a dataset.

    Attributes:
        items: Items of the dataset.
        classes: Number of classes. Labels are 0 .. classes - 1.
        ignore_index: Label of ignored pixels.
        label_map: Classes of the values or colours in the masks, or None if the values are labels.
        channels: Number of channels of the images.
    """

    items: Given
    classes: int = 0
    ignore_index: int = IGNORE_INDEX
    label_map: LabelMap | None = None
    channels: int = 3

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Labelled:
        item, called = self.items.item(index), self.items.called(index)
        image, mask = self.items.pixels(index, item, self.channels), self.mask_of(index, item)
        check_sizes(image, mask, f"The mask of {called}", "of the same item")
        check_labels(mask, self.classes, self.ignore_index, called)
        return Labelled(image, mask)

    def raw_labels(self, index: int) -> Tensor:
        return self.mask_of(index, self.items.item(index))

    def mask_name(self, index: int) -> str:
        return f"The mask of {self.items.called(index)}"

    def mask_of(self, index: int, item: Any) -> Tensor:
        """Return the mask [H, W] of an item as int64. Raise `DataError` if it has none, or not of integers."""
        called, value = self.items.called(index), self.items.label(index, item, MASKS, "a mask")
        colours = self.label_map is not None and self.label_map.in_colour
        if isinstance(value, Image.Image):
            value = value.convert("RGB") if colours else value
        elif isinstance(value, Tensor):
            value = value.detach().cpu().numpy()
        found = np.asarray(value)
        if found.ndim == 3 and found.shape[0] == 1:
            found = found[0]
        if found.ndim != (3 if colours else 2) or found.dtype.kind not in "iub":
            raise DataError(
                f"The mask of {called} is {found.dtype} with the shape {list(found.shape)}; return integers [H, W], "
                "the class of each pixel."
            )
        if self.label_map is not None:
            return self.label_map.apply(found, f"The mask of {called}")
        return torch.from_numpy(found.astype(np.int64))

    def files(self) -> list[Path]:
        return []

    def content(self) -> tuple[str, ...]:
        return (self.items.mark(),)

    def place(self) -> str:
        return f"in the dataset {self.items.name}"

    def subset(self, indices: list[int]) -> GivenMasks:
        return replace(self, items=self.items.subset(indices))

    def with_channels(self, channels: int) -> GivenMasks:
        return replace(self, channels=channels)


@dataclass(frozen=True, eq=False)
class GivenClasses(ClassSet):
    """Images with classes of a dataset.

    Attributes:
        items: Items of the dataset.
        labels: Class of each image.
        names: Class names.
    """

    items: Given
    labels: tuple[int, ...]
    names: tuple[str, ...]

    def open(self, index: int, channels: int) -> LazyImage:
        try:
            return self.items.image(index, self.items.item(index), channels)
        except DataError as fault:
            raise UnreadableError(str(fault)) from fault

    def called(self, index: int) -> str:
        return self.items.called(index)

    def place(self) -> str:
        return f"in the dataset {self.items.name}"

    def files(self) -> list[Path]:
        return []

    def content(self) -> tuple[str, ...]:
        return (self.items.mark(), hashlib.sha256(repr(self.labels).encode()).hexdigest()[:16])

    def identity(self) -> str:
        return repr((self.content(), self.items.rows))

    def subset(self, indices: list[int]) -> GivenClasses:
        return replace(self, items=self.items.subset(indices), labels=tuple(self.labels[index] for index in indices))


def given_classes(data: Any) -> tuple[GivenClasses, GivenClasses, str]:
    """Return the training and validation images of datasets with classes, and a note on the split.

    Raises:
        DataError: A label is not a class number, or there are fewer than two classes.
    """
    parts = open_given(data)
    labels = [labels_of(part) for part in parts[:2]]
    count = 1 + max(max(some) for some in labels)
    names = names_in(parts[0].dataset)
    if len(names) < count:
        names = tuple(map(str, range(count)))
    check_several(names, parts[0].name)
    train, val = (GivenClasses(part, some, names) for part, some in zip(parts[:2], labels, strict=True))
    return train, val, parts[2]


def labels_of(items: Given) -> tuple[int, ...]:
    """Return the class of each item: from the attribute `targets` as in torchvision, or by reading all items."""
    listed = getattr(items.dataset, "targets", None)
    if isinstance(listed, list | tuple | Tensor | np.ndarray) and len(listed) == len(items.dataset):
        found = [listed[row] for row in items.rows]
    else:
        found = []
        with progress(f"reading classes of {items.name}", len(items)) as advance:
            for index in range(len(items)):
                found.append(items.label(index, items.item(index), LABELS, "a class"))
                advance(1)
    labels = []
    for index, value in enumerate(found):
        number = value.item() if isinstance(value, Tensor | np.ndarray | np.generic) and value.size else value
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise DataError(
                f"{items.called(index)} has the class {str(value)[:40]!r}; return class numbers 0, 1, 2 and so on."
            )
        labels.append(number)
    return tuple(labels)
