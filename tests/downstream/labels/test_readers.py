"""Every format is written as its makers write it, quirks included, and read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from dovetail.downstream.labels.coco import CocoSet
from dovetail.downstream.labels.readers import open_segmentation, with_masks
from dovetail.errors import DovetailError, MissingFilesError
from tests.downstream.coco_files import write_coco
from tests.downstream.labels.mask_files import SIZE, pairs, voc, write_image, write_mask


def test_voc_has_palettes_and_void(tmp_path: Path) -> None:
    found = open_segmentation(voc(tmp_path))
    assert (found.format, found.classes, len(found.train), len(found.val)) == ("voc", 21, 1, 1)
    assert found.names[20] == "tvmonitor"
    image, mask = found.train[0]
    assert image.shape == (3, 16, 24)
    assert mask[0, :4].tolist() == [1, 20, 255, 0]
    assert found.train.classes_in(0) == [0, 1, 20]


def test_the_augmented_training_set_of_voc(tmp_path: Path) -> None:
    found = open_segmentation(voc(tmp_path, augmented=True) / "VOCdevkit" / "VOC2012")
    assert (len(found.train), len(found.val)) == (2, 1)
    assert found.train[0].mask[0, :3].tolist() == [2, 15, 255]
    assert found.val[0].mask[0, :3].tolist() == [1, 20, 255]
    assert "trainaug" in found.note


def test_names_with_dots_in_a_list(tmp_path: Path) -> None:
    base = voc(tmp_path) / "VOCdevkit" / "VOC2012"
    for folder, suffix in (("JPEGImages", "jpg"), ("SegmentationClass", "png")):
        (base / folder / f"2007_000032.{suffix}").rename(base / folder / f"2007.000032.{suffix}")
    (base / "ImageSets" / "Segmentation" / "train.txt").write_text("2007.000032\n")
    assert len(open_segmentation(tmp_path).train) == 1


def test_a_list_that_is_no_text(tmp_path: Path) -> None:
    root = voc(tmp_path)
    (root / "VOCdevkit" / "VOC2012" / "ImageSets" / "Segmentation" / "val.txt").write_bytes(b"\xff\xfe2007")
    with pytest.raises(DovetailError, match=r"val\.txt cannot be read as a list"):
        open_segmentation(root)


def test_a_list_that_names_a_missing_mask(tmp_path: Path) -> None:
    root = voc(tmp_path)
    (root / "VOCdevkit" / "VOC2012" / "SegmentationClass" / "2007_000039.png").unlink()
    with pytest.raises(DovetailError, match=r"2007_000039\.png"):
        open_segmentation(root)


def ade20k(folder: Path) -> Path:
    root = folder / "ADEChallengeData2016"
    for split, stem in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        write_image(root / "images" / split / f"{stem}.jpg")
        write_mask(root / "annotations" / split / f"{stem}.png", [1, 150, 0])
    rows = ["Idx\tRatio\tTrain\tVal\tStuff\tName", *(f"{i}\t0.1\t1\t1\t0\tthing{i}, other" for i in range(1, 151))]
    (root / "objectInfo150.txt").write_text("\n".join(rows))
    return folder


def test_ade20k_does_not_count_label_zero(tmp_path: Path) -> None:
    root = ade20k(tmp_path) / "ADEChallengeData2016"
    found = open_segmentation(tmp_path)
    assert (found.format, found.classes) == ("ade20k", 150)
    assert found.train[0].mask[0, :4].tolist() == [0, 149, 255, 255]
    assert found.names[0] == "thing1"
    write_mask(root / "annotations" / "training" / "ADE_train_00000001.png", [151])
    with pytest.raises(DovetailError, match=r"ADE_train_00000001\.png contains label 151"):
        found.train[0]


@pytest.mark.parametrize("kind", ["labelIds", "labelTrainIds"])
def test_cityscapes_counts_19_of_34_labels(kind: str, tmp_path: Path) -> None:
    for split, city in (("train", "aachen"), ("val", "munster")):
        stem = f"{city}_000000_000019"
        write_image(tmp_path / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png")
        folder = tmp_path / "gtFine" / split / city
        write_mask(folder / f"{stem}_gtFine_labelIds.png", [7, 33, 3])
        write_mask(folder / f"{stem}_gtFine_instanceIds.png", [7, 33, 3])
        if kind == "labelTrainIds":
            write_mask(folder / f"{stem}_gtFine_labelTrainIds.png", [0, 18, 255, 255])
    found = open_segmentation(tmp_path)
    assert (found.format, found.classes, len(found.train)) == ("cityscapes", 19, 1)
    expected = [0, 18, 255, 255]
    assert found.train[0].mask[0, :4].tolist() == expected


@pytest.mark.parametrize("layout", ["images/{}", "{}/images"])
def test_images_beside_masks_match_by_stem(layout: str, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for index in range(2):
            write_image(tmp_path / layout.format(split) / f"field.{index}.tif")
            write_mask(tmp_path / layout.replace("images", "masks").format(split) / f"field.{index}.png", [3, 255])
    found = open_segmentation(tmp_path)
    assert (found.format, found.classes, len(found.train), len(found.val)) == ("folders", 4, 2, 2)
    assert open_segmentation(tmp_path, classes=7).classes == 7
    with pytest.raises(DovetailError, match="contains label 3"):
        open_segmentation(tmp_path, classes=2).train[0]


def test_a_set_without_validation_holds_a_fifth_out(tmp_path: Path) -> None:
    for index in range(10):
        write_image(tmp_path / "images" / f"{index}.jpg")
        write_mask(tmp_path / "masks" / f"{index}.png", [1], palette=True)
    (tmp_path / "about.json").write_text("{}")  # of whatever program wrote the masks
    found = open_segmentation(tmp_path)
    assert (len(found.train), len(found.val)) == (8, 2)
    assert "2 of 10" in found.note
    assert found.train.files() == open_segmentation(tmp_path).train.files()


def test_faults_of_folders_name_each_file(tmp_path: Path) -> None:
    for index in range(6):
        write_image(tmp_path / "images" / f"{index}.jpg", (25, 16) if index == 2 else SIZE)
        write_mask(tmp_path / "masks" / f"{index}.png", [9 if index == 3 else 1])
    Image.new("RGB", SIZE, "navy").save(tmp_path / "masks" / "4.png")
    found = open_segmentation(tmp_path, classes=2)
    faults = [*found.train.faults(), *found.val.faults()]
    assert len(faults) == 3
    for name in ("2.png", "3.png", "4.png"):
        assert sum(name in fault for fault in faults) == 1
    (tmp_path / "masks" / "0.png").unlink()
    with pytest.raises(DovetailError, match=r"1 of 6 images .* have no mask .*0\.jpg"):
        open_segmentation(tmp_path, classes=2)


def test_coco_objects_become_masks_the_smaller_on_top(tmp_path: Path) -> None:
    write_coco(tmp_path)
    found = open_segmentation(tmp_path)
    assert (found.format, found.names) == ("coco", ("background", "cat", "kite"))
    mask = found.train[0].mask
    assert mask[5, 5] == 1  # the large polygon
    assert mask[9, 9] == 2  # the small one on it
    assert mask[30, 30] == 0
    assert int(found.train[1].mask.sum()) == 0  # an image without annotations
    assert mask[5, 36] == 1  # a crowd's run-lengths


def test_coco_without_masks_is_no_set_for_segmentation(tmp_path: Path) -> None:
    path = write_coco(tmp_path) / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"] = [{**one, "segmentation": []} for one in content["annotations"] if "bbox" in one]
    path.write_text(json.dumps(content))
    with pytest.raises(DovetailError, match=r"val2017\.json has no masks; segmentation needs"):
        open_segmentation(tmp_path)


def test_more_categories_than_labels_are_refused(tmp_path: Path) -> None:
    path = write_coco(tmp_path) / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    for count in (254, 255):  # label 255 is what is ignored
        known = len(content["categories"])
        content["categories"] += [{"id": 1000 + more, "name": f"c{more}"} for more in range(known, count)]
        path.write_text(json.dumps(content))
        train = CocoSet.open(path)
        assert len(train.names) == count
        if count == 254:
            assert with_masks(train).classes == 255
        else:
            with pytest.raises(DovetailError, match=r"has 255 categories, but segmentation supports 254"):
                with_masks(train)


def test_a_single_coco_file_is_split(tmp_path: Path) -> None:
    write_coco(tmp_path)
    found = open_segmentation(tmp_path / "annotations" / "instances_train2017.json")
    assert len(found.train) + len(found.val) == 3
    assert found.note


def test_missing_images_of_a_coco_set_are_named_before_anything_is_read(tmp_path: Path) -> None:
    write_coco(tmp_path)
    for split, number in (("train", 3), ("val", 1)):
        (tmp_path / f"{split}2017" / f"{number:012d}.png").unlink()
    with pytest.raises(MissingFilesError, match="2 images") as caught:
        open_segmentation(tmp_path)
    assert len(caught.value.faults) == 2
    assert "train2017/000000000003.png is missing" in caught.value.faults[0]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([0, 255], "0 and 255, and 255 is ignored; if 255 marks a class, add --label-map 255:1"),
        ([0], "0;"),
        ([255] * SIZE[0], "255, and 255 is ignored;"),
    ],
)
def test_masks_of_one_class_are_refused(values: list[int], words: str, tmp_path: Path) -> None:
    with pytest.raises(DovetailError, match=f"All masks in .*masks contain only label {words}"):
        open_segmentation(pairs(tmp_path, values))


def test_the_label_that_does_not_count_is_an_option(tmp_path: Path) -> None:
    data = pairs(tmp_path / "a", [3, 0, 2])
    found = open_segmentation(data, ignore_index=0)
    assert (found.classes, found.train.ignore_index, found.train.classes_in(0)) == (4, 0, [2, 3])
    with pytest.raises(DovetailError, match=r"contains label 255 .* and 0 is ignored"):
        open_segmentation(pairs(tmp_path / "b", [3, 255]), classes=4, ignore_index=0).train[0]
    assert open_segmentation(tmp_path / "b", classes=256, ignore_index=-1).train[0].mask[0, 1] == 255
    with pytest.raises(DovetailError, match="its own ignored label; omit --ignore-index"):
        open_segmentation(voc(tmp_path / "c"), ignore_index=0)


def test_masks_without_images_are_told(tmp_path: Path) -> None:
    data = pairs(tmp_path, [1])
    for number in (1, 3):
        (data / "images" / f"{number}.jpg").unlink()
    found = open_segmentation(data)
    assert len(found.train) + len(found.val) == 3
    assert "Skipped 2 masks without an image, such as" in found.note
    assert "1.png" in found.note


def test_files_that_are_not_read_are_counted(tmp_path: Path) -> None:
    data = pairs(tmp_path, [1])
    (data / "images" / "phone.heic").write_bytes(b"heic")
    (data / "images" / "notes.txt").write_text("text")
    (data / "images" / "more").mkdir()
    assert "Skipped 1 .heic file, 1 .txt file and 1 folder (not supported as images)." in open_segmentation(data).note


def test_a_json_beside_masks_is_no_coco_set(tmp_path: Path) -> None:
    for split in ("train", "val"):
        pairs(tmp_path / split, [1])
    (tmp_path / "classes.json").write_text("{}")
    assert open_segmentation(tmp_path).format == "folders"


def test_a_number_of_classes_that_a_format_has_not(tmp_path: Path) -> None:
    with pytest.raises(DovetailError, match=r"classes is 5, but .* has 21; omit --classes"):
        open_segmentation(voc(tmp_path), classes=5)
    assert open_segmentation(tmp_path, classes=21).classes == 21


def test_unknown_folders_and_differing_categories(tmp_path: Path) -> None:
    with pytest.raises(DovetailError, match=r"The format of .* is unknown"):
        open_segmentation(tmp_path)
    with pytest.raises(DovetailError, match=r"There is no file or folder .*nowhere"):
        open_segmentation(tmp_path / "nowhere")
    write_coco(tmp_path)
    path = tmp_path / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["categories"][0]["name"] = "dog"
    path.write_text(json.dumps(content))
    with pytest.raises(DovetailError, match="different categories"):
        open_segmentation(tmp_path)
