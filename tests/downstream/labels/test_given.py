"""Labelled datasets in Python: every form of their items, their splits, and sentences about what does not fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset
from torchvision.datasets import CocoDetection, ImageFolder

import dovetail
from dovetail.downstream.detect.job import open_detection
from dovetail.downstream.labels.given import given
from dovetail.downstream.labels.images import open_splits
from dovetail.downstream.labels.readers import open_segmentation
from tests.downstream.coco_files import write_coco
from tests.downstream.pictures import class_folder, exported_run

FAST: dict[str, Any] = {"accelerator": "cpu", "precision": "float32", "workers": 0, "steps": 1, "batch_size": 2}
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 40, 48, 3), dtype=np.uint8)
MASKS = np.arange(6 * 40 * 48, dtype=np.int64).reshape(6, 40, 48) % 3


class Items(Dataset[Any]):
    """A map-style dataset of `count` items that `make` returns."""

    def __init__(self, make: Callable[[int], Any], count: int = 6, **attributes: Any) -> None:
        self.make, self.count = make, count
        vars(self).update(attributes)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.make(index)


def picture(index: int) -> Image.Image:
    return Image.fromarray(PIXELS[index])


def tensor(index: int) -> torch.Tensor:
    return torch.from_numpy(PIXELS[index]).permute(2, 0, 1)


SEGMENTED: dict[str, Callable[[int], Any]] = {
    "pillow": lambda index: (picture(index), Image.fromarray(MASKS[index].astype(np.uint8))),
    "tensors": lambda index: (tensor(index) / 255, torch.from_numpy(MASKS[index])[None]),
    "dictionary": lambda index: {"image": PIXELS[index], "mask": MASKS[index].astype(np.uint8)},
}


@pytest.mark.parametrize("form", SEGMENTED)
def test_masks(form: str) -> None:
    data = open_segmentation(Items(SEGMENTED[form]))
    assert (data.format, data.classes, len(data.train), len(data.val)) == ("given", 3, 5, 1)
    assert "1 of 6 images are held out" in data.note
    items = [data.train[index] for index in range(5)]
    found = {int(np.flatnonzero([(item.image == tensor(index)).all() for index in range(6)])[0]) for item in items}
    assert len(found) == 5
    for item in items:
        index = next(index for index in range(6) if bool((item.image == tensor(index)).all()))
        assert torch.equal(item.mask, torch.from_numpy(MASKS[index]))
    splits = {"train": Items(SEGMENTED[form], 4, classes=["a", "b", "c"]), "val": Items(SEGMENTED[form], 2)}
    data = open_segmentation(splits)
    assert (len(data.train), len(data.val), data.names) == (4, 2, ("a", "b", "c"))


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (Items(picture), r"Items\[\d\] has only a Image, but needs a mask; return \(image, mask\)"),
        (Items(lambda index: {"image": picture(index)}), "has the keys image, but needs a mask"),
        (
            Items(lambda index: (picture(index), MASKS[index] / 3)),
            r"float64 with the shape \[40, 48\]; return",
        ),
        (Items(lambda index: (picture(index), MASKS[index][1:])), "48x39 pixels, its image of the same item 48x40"),
        (Items(lambda index: (3, MASKS[index])), "cannot be read as an image"),
        (Items(lambda index: [][index]), r"cannot be read \(IndexError: list index out of range\); correct"),
        ({"train": Items(picture)}, "has the splits train, but needs train and val"),
        (Items(picture, 0), "Items is empty; pass at least one item"),
        (iter([1, 2]), "pass a path, or a map-style dataset"),
    ],
)
def test_masks_that_do_not_fit(data: Any, sentence: str) -> None:
    def whole() -> None:
        found = open_segmentation(data)
        _ = [found.train[index] for index in range(len(found.train))]

    with pytest.raises(dovetail.DataError, match=sentence):
        whole()


def test_classes(tmp_path: Path) -> None:
    root = class_folder(tmp_path / "set")
    folders = {name: ImageFolder(root / name) for name in ("train", "val")}
    train, val, _ = open_splits(folders)
    stored, _, _ = open_splits(root)
    assert (train.names, train.labels) == (stored.names, stored.labels)
    assert len(val) == 12
    pixels = train.pixels(3, channels=3, side=18)
    assert torch.equal(pixels, torch.from_numpy(np.array(folders["train"][3][0])).permute(2, 0, 1))
    train, val, note = open_splits(Items(lambda index: (picture(index), torch.tensor(index % 2))))
    assert sorted(train.labels + val.labels) == [0, 0, 0, 1, 1, 1]
    assert "held out" in note
    for label, sentence in ((-1, "class '-1'"), ("cat", "class 'cat'"), (0, "only the class '0'")):
        with pytest.raises(dovetail.DataError, match=sentence):
            open_splits(Items(lambda index, label=label: (picture(index), label)))  # type: ignore[misc]


def boxes(index: int) -> dict[str, Any]:
    """Return the target of an image with two objects."""
    masks = np.zeros((2, 40, 48), np.uint8)
    masks[0, 2:12, 3:9], masks[1, 20:30, 10:40] = 1, 1
    return {
        "boxes": torch.tensor([[3.0, 2.0, 9.0, 12.0], [10.0, 20.0, 40.0, 30.0]]),
        "labels": torch.tensor([2, 5]),
        "masks": torch.from_numpy(masks),
    }


def test_objects_of_torchvision() -> None:
    data = {
        "train": Items(lambda index: (tensor(index), boxes(index))),
        "val": Items(lambda i: {"image": picture(i)} | boxes(i), 2),
    }
    train, val, _ = open_detection(data)
    assert (train.ids, train.names, len(train), len(val)) == ((2, 5), ("2", "5"), 6, 2)
    for part in (train, val):
        first, second = part.images[1].objects
        assert (first.box, first.label, second.box) == ((3, 2, 6, 10), 0, (10, 20, 30, 10))
        assert second.mask(40, 48).sum() == 300
        assert torch.equal(part.images[1].pixels(), tensor(1))


def test_objects_of_coco(tmp_path: Path) -> None:
    root = write_coco(tmp_path)
    parts: dict[str, Any] = {
        split: CocoDetection(root / f"{split}2017", root / f"annotations/instances_{split}2017.json")
        for split in ("train", "val")
    }
    train, _, _ = open_detection(parts)
    stored, _, _ = open_detection(root)
    used = {one.label for image in stored.images for one in image.objects}
    assert train.names == tuple(stored.names[label] for label in sorted(used))

    def seen(data: Any) -> Sequence[Any]:
        return [
            [(data.names[one.label], one.box, one.area, one.crowd) for one in image.objects] for image in data.images
        ]

    assert seen(train) == seen(stored)


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ({"boxes": torch.zeros(2, 4), "labels": torch.ones(1)}, "2 boxes and 1 labels"),
        ({"boxes": torch.zeros(1, 4), "labels": torch.zeros(1, dtype=torch.int64)}, "number the classes from 1"),
        ({"annotation": {}}, "return a dictionary with boxes"),
    ],
)
def test_objects_that_do_not_fit(target: Any, sentence: str) -> None:
    with pytest.raises(dovetail.DataError, match=sentence):
        open_detection(Items(lambda index: (picture(index), target)))


def test_datasets_have_their_own_marks() -> None:
    def mark(shift: int = 0, count: int = 6) -> str:
        return given(Items(lambda index: (picture(index), MASKS[index] + shift), count), "a").mark()

    assert mark() == mark()
    assert len({mark(), mark(1), mark(0, 5)}) == 3


@pytest.mark.parametrize("kind", ["segment", "detect", "classify"])
def test_fine_tuning_on_a_dataset(kind: str, tmp_path: Path) -> None:
    model = "timm/test_resnet+fpn(channels=16)"
    run = exported_run(tmp_path / "run", model, image_size=64)
    given: dict[str, Any] = {"run": run, "out": tmp_path / "out", **FAST}
    if kind == "segment":
        results = dovetail.finetune_segment(data=Items(SEGMENTED["tensors"]), crop_size=32, **given)
    elif kind == "detect":
        small: dict[str, Any] = {"image_size": 64, "head_width": 0.125, "proposals": 8, "task": "masks"}
        results = dovetail.finetune_detect(data=Items(lambda one: (tensor(one), boxes(one))), **small, **given)
    else:
        results = dovetail.finetune_classify(data=Items(lambda one: (picture(one), one % 2)), **given)
    assert results is not None
    assert results.data["train_images"] == 5
    assert results.config["data"] == f"{__name__}.Items"
    assert len(dovetail.load(tmp_path / "out").class_names) == (3 if kind == "segment" else 2)


def test_a_dataset_is_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given: dict[str, Any] = {"model": "timm/test_resnet", "out": tmp_path, "check": True}
    assert dovetail.finetune_segment(data=Items(SEGMENTED["pillow"]), **given) is None
    assert dovetail.finetune_detect(data=Items(lambda one: (tensor(one), boxes(one))), **given) is None
    data = dict.fromkeys(("train", "val"), Items(lambda one: (picture(one), one % 2)))
    assert dovetail.finetune_classify(data=data, **given) is None
    assert capsys.readouterr().out.count("Found no faults in") == 3
    wrong = Items(lambda one: (None if one == 3 else picture(one), one % 2), targets=[0, 1, 0, 1, 0, 1])
    with pytest.raises(dovetail.DataError, match="1 of 12 images has a problem"):
        dovetail.finetune_classify(data={"train": wrong, "val": data["val"]}, **given)
    assert not any(tmp_path.iterdir())
