"""Sets that Hugging Face's `datasets` saved are read as they come: splits, columns, quirks, faults."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dovetail
from dovetail.cli import run as run_command
from dovetail.downstream.labels.arrow import SavedSplit
from dovetail.downstream.labels.images import open_splits
from dovetail.downstream.labels.readers import open_segmentation
from dovetail.errors import DovetailError
from tests.downstream.pictures import COLOURS, noisy

datasets = pytest.importorskip("datasets")

LABELS = np.array([[0, 1, 2, 255]] * 3, np.uint8)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def file_of(image: Image.Image, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


def classified(count: int, *, labels: Any = None, feature: Any = None, name: str = "label") -> Any:
    """Return a split of coloured images, half of them PNG and half JPEG, with three classes in turn."""
    rng = np.random.default_rng(count)
    values = [index % 3 for index in range(count)] if labels is None else labels
    images = [
        {"bytes": file_of(noisy(COLOURS[index % 3], (40, 36), rng), ("PNG", "JPEG")[index % 2]), "path": None}
        for index in range(count)
    ]
    features = {"image": datasets.Image(), name: feature or datasets.ClassLabel(names=["red", "green", "blue"])}
    return datasets.Dataset.from_dict({"image": images, name: values}, features=datasets.Features(features))


def masked(masks: list[np.ndarray[Any, Any]], *, palette: bool = False) -> Any:
    """Return a split of images with masks."""
    columns: dict[str, list[Any]] = {"image": [], "annotation": [], "scene": []}
    for labels in masks:
        mask = Image.fromarray(labels)
        if palette:
            mask = mask.convert("P")
            mask.putdata(labels.ravel().tolist())
            mask.putpalette([value for index in range(256) for value in (index, 255 - index, 7)])
        columns["image"].append({"bytes": file_of(Image.new("RGB", (4, 3), "navy"), "JPEG"), "path": "a.jpg"})
        columns["annotation"].append({"bytes": file_of(mask), "path": None})
        columns["scene"].append(0)
    kinds = {"image": datasets.Image(), "annotation": datasets.Image(), "scene": datasets.ClassLabel(names=["x"])}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def saved(folder: Path, **splits: Any) -> Path:
    datasets.DatasetDict(splits).save_to_disk(str(folder))
    return folder


def test_classes_of_splits(tmp_path: Path) -> None:
    hidden = classified(4, labels=[-1] * 4)
    data = saved(tmp_path / "set", train=classified(9), test=hidden, validation=classified(6))
    train, held_out, note = open_splits(data)
    assert (len(train), len(held_out), note) == (9, 6, "")
    assert train.names == held_out.names == ("red", "green", "blue")
    assert train.labels == (0, 1, 2) * 3
    pixels = train.pixels(4, channels=3, side=8)
    assert pixels.shape == (3, 36, 40)
    assert int(pixels.float().mean((1, 2)).argmax()) == 1
    assert train.subset([3, 1]).labels == (0, 1)
    assert train.identity() != train.subset([3, 1]).identity()
    assert list(train.faults()) == []


def test_a_split_of_hidden_labels_is_not_measured_on(tmp_path: Path) -> None:
    data = saved(tmp_path / "set", train=classified(10), test=classified(4, labels=[-1] * 4))
    train, held_out, note = open_splits(data)
    assert (len(train), len(held_out)) == (8, 2)
    assert "2 of 10" in note


def test_one_split_and_words_for_classes(tmp_path: Path) -> None:
    words = ["cat", "ant", "bee", "ant", "cat", "bee"]
    classified(6, labels=words, feature=datasets.Value("string")).save_to_disk(str(tmp_path / "set"))
    train, held_out, note = open_splits(tmp_path / "set")
    assert train.names == ("ant", "bee", "cat")
    assert len(train) + len(held_out) == 6
    assert "no validation part" in note


def test_evaluation_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = saved(tmp_path / "set", train=classified(12), validation=classified(6))
    options = ["--data", str(data), "--out", str(tmp_path / "out"), "--accelerator", "cpu", "--workers", "2"]
    arguments = ["evaluate", "knn", "--model", "timm/test_resnet", "--image-size", "32", *options, "--k", "3"]
    assert run_command(arguments) == 0
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["rows"][0]["scores"]["top1"]["mean"] > 0.8
    assert content["data"]["train_images"] == 12
    assert run_command([*arguments, "--check"]) == 0
    assert "Found no faults in 18 images." in capsys.readouterr().out


@pytest.mark.parametrize("palette", [False, True])
def test_masks_of_splits(palette: bool, tmp_path: Path) -> None:
    found = open_segmentation(
        saved(tmp_path / "set", train=masked([LABELS] * 2, palette=palette), validation=masked([LABELS + 1 - 1]))
    )
    assert (found.format, found.classes, len(found.train), len(found.val)) == ("datasets", 3, 2, 1)
    image, mask = found.train[1]
    assert image.shape == (3, 3, 4)
    assert torch.equal(mask, torch.from_numpy(LABELS).long())
    assert found.train.classes_in(0) == [0, 1, 2]
    assert "column 'annotation'" in found.note
    assert found.train.files()


def test_masks_are_learned(tmp_path: Path) -> None:
    masked([LABELS] * 5).save_to_disk(str(tmp_path / "set"))
    results = dovetail.finetune_segment(
        model="timm/test_resnet+fpn(channels=16)", data=tmp_path / "set", out=tmp_path / "out", start=["random"],
        steps=1, batch_size=2, crop_size=32, accelerator="cpu", workers=0,
    )  # fmt: skip
    assert results is not None
    assert results.data["format"] == "datasets"


def test_faults_name_the_row(tmp_path: Path) -> None:
    torn = masked([LABELS, LABELS, LABELS])
    rows = torn.with_format("arrow")[:].to_pylist()
    rows[1]["image"]["bytes"] = rows[1]["image"]["bytes"][:60]
    rows[2]["annotation"] = {"bytes": file_of(Image.fromarray(LABELS[:2])), "path": None}
    broken = datasets.Dataset.from_list(rows, features=torn.features)
    found = open_segmentation(saved(tmp_path / "set", train=broken, validation=masked([LABELS])), classes=2)
    faults = list(found.train.faults())
    assert len(faults) == 3
    assert "train[0] contains label 2" in faults[0]
    assert "train[1] cannot be read" in faults[1]
    assert "train[2] is 4x2 pixels" in faults[2]


def test_rows_without_pixels_are_named(tmp_path: Path) -> None:
    rows = [{"image": None}, {"image": {"bytes": None, "path": str(tmp_path / "a.jpg")}}]
    split = SavedSplit("set/train", rows, (1, 0))
    with pytest.raises(DovetailError, match=r"set/train\[1\] names the file .*a\.jpg, which cannot be read"):
        split.content(0, "image")
    with pytest.raises(DovetailError, match=r"set/train\[0\] has nothing in column 'image'"):
        split.content(1, "image")
    (tmp_path / "a.jpg").write_bytes(b"pixels")
    assert split.content(0, "image") == b"pixels"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: {"training": classified(3)}, "has the splits training, but none named train"),
        (lambda: {"train": classified(3, labels=[0, -1, 1])}, r"train\[1\] has label -1 in column 'label'"),
        (lambda: {"train": classified(3).remove_columns("image")}, "has no column of images among label"),
        (lambda: {"train": classified(3).rename_column("label", "x").cast_column("x", datasets.Value("int64"))},
         "has no column of classes among image, x"),
        (lambda: {"train": classified(3, name="a").add_column("b", [0, 1, 2]).cast_column(
            "b", datasets.ClassLabel(names=["u", "v", "w"]))}, r"several columns of classes \(a, b\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_sentence(make: Any, sentence: str, tmp_path: Path) -> None:
    data = saved(tmp_path / "set", **make())
    with pytest.raises(DovetailError, match=sentence):
        open_splits(data)


def test_segmentation_needs_two_columns_of_images(tmp_path: Path) -> None:
    with pytest.raises(DovetailError, match="segmentation needs two"):
        open_segmentation(saved(tmp_path / "set", train=classified(3)))


def test_damaged_sets_and_the_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = saved(tmp_path / "set", train=classified(3))
    arrow = next((data / "train").glob("*.arrow"))
    arrow.write_bytes(arrow.read_bytes()[:100])
    with pytest.raises(DovetailError, match="cannot be read as a saved dataset"):
        open_splits(data)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DovetailError, match=r"not installed; install it with .*dovetail-ssl\[datasets\]"):
        open_splits(data)


def test_numbers_with_gaps_are_names_of_classes(tmp_path: Path) -> None:
    labels = [1004, 20001, 7, 7, 1004, 20001]
    split = classified(6, labels=labels, feature=datasets.Value("int64"))
    train, held_out, note = open_splits(saved(tmp_path / "set", train=split, validation=split))
    assert train.names == ("7", "1004", "20001")
    assert train.labels == held_out.labels == (1, 2, 0, 0, 1, 2)
    assert "contains the numbers 7, 1004, 20001, which are used as class names" in note


def test_a_label_map_says_what_the_labels_of_a_column_mean(tmp_path: Path) -> None:
    split = masked([LABELS * 50])
    data = saved(tmp_path / "set", train=split, validation=split)
    with pytest.raises(DovetailError, match="most numbers from 0 to 206 never occur"):
        open_segmentation(data)
    found = open_segmentation(data, label_map=["50:1", "100:2", "206:ignore"])
    assert found.classes == 3
    assert found.train[0].mask[0].tolist() == [0, 1, 2, 255]
