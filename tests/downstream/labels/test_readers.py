"""Every format is written as its makers write it, quirks included, and read."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dovetail.downstream.labels.checking import check_segmentation
from dovetail.downstream.labels.coco import CocoSet
from dovetail.downstream.labels.readers import open_segmentation, with_masks
from dovetail.errors import DovetailError, MissingFilesError
from tests.downstream.coco_files import write_coco

SIZE = (24, 16)  # width, height


def write_image(path: Path, size: tuple[int, int] = SIZE) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((size[1], size[0], 3), 90, np.uint8)).save(path)


def write_mask(path: Path, values: Any, *, palette: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.zeros((SIZE[1], SIZE[0]), np.uint8)
    labels[:, : len(values)] = values
    image = Image.fromarray(labels)
    if palette:
        image = image.convert("P")
        image.putdata(labels.ravel().tolist())
        image.putpalette([value for index in range(256) for value in (index, 255 - index, (7 * index) % 256)])
    image.save(path)


def voc(root: Path, *, augmented: bool = False) -> Path:
    base = root / "VOCdevkit" / "VOC2012"
    lists = base / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for stem in ("2007_000032", "2007_000039", "2007_000063"):
        write_image(base / "JPEGImages" / f"{stem}.jpg")
        write_mask(base / "SegmentationClass" / f"{stem}.png", [1, 20, 255], palette=True)
        if augmented:
            write_mask(base / "SegmentationClassAug" / f"{stem}.png", [2, 15, 255])
    (lists / "train.txt").write_text("2007_000032\n")
    (lists / "val.txt").write_text("2007_000039\n\n")
    if augmented:
        (lists / "trainaug.txt").write_text(
            "/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png\n2007_000063\n"
        )
    return root


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


def pairs(root: Path, values: list[int], *, count: int = 5) -> Path:
    for index in range(count):
        write_image(root / "images" / f"{index}.jpg")
        write_mask(root / "masks" / f"{index}.png", values)
    return root


@pytest.mark.parametrize(
    ("values", "words"),
    [([0, 255], "0 and 255, and 255 is ignored;"), ([0], "0;"), ([255] * SIZE[0], "255, and 255 is ignored;")],
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


@pytest.mark.parametrize("kind", ["gaps", "jpeg", "ignored"])
def test_labels_that_are_no_class_numbers_are_refused_with_a_way_out(kind: str, tmp_path: Path) -> None:
    data = pairs(tmp_path, [0, 128, 255] if kind == "gaps" else [0, 255])
    words = (
        r"contain the labels 0, 128, and 255 is ignored: most numbers .* --label-map 0:0 128:1, or use --classes 129"
    )
    if kind == "jpeg":  # saved as JPEG on the way, and as PNG again
        for path in (data / "masks").iterdir():
            spots = np.random.default_rng(int(path.stem)).integers(0, 3, (12, 12)).repeat(4, 0).repeat(4, 1) * 127
            file = io.BytesIO()
            Image.fromarray(spots.astype(np.uint8)).save(file, "JPEG", quality=60)
            Image.open(file).save(path)
            write_image(data / "images" / f"{path.stem}.jpg", (48, 48))
        words = "labels, [0-9]+ per mask on average. JPEG and smooth resizing mix labels"
    elif kind == "ignored":
        words = "contain only label 0 and 255, and 255 is ignored; .* such as --label-map 255:1"
    with pytest.raises(DovetailError, match=words):
        open_segmentation(data)
    with pytest.raises(DovetailError, match="Found 1 fault"):
        check_segmentation(data, None, 255)
    assert open_segmentation(data, classes=256).classes == 256
    if kind != "ignored":
        check_segmentation(data, 256, 255)


def test_check_names_parts_that_hold_too_few_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = pairs(tmp_path, [0, 1])
    kept = {path.name for path in open_segmentation(data).train.files()}
    for mask in (data / "masks").iterdir():
        if mask.name in kept:
            Image.fromarray(np.ones_like(np.asarray(Image.open(mask)))).save(mask)
    with pytest.raises(DovetailError, match="Found 1 fault"):
        check_segmentation(data, None, 255)
    told = capsys.readouterr().out
    assert "for training" in told
    assert "contain only class 1 (ignored: 255)" in told
    assert "Found no faults" not in told


def test_a_few_numbers_that_never_occur_are_told(tmp_path: Path) -> None:
    found = open_segmentation(pairs(tmp_path, [0, 1, 3, 255]))
    assert found.classes == 4
    assert "Labels found: 0 to 1, 3; 255 is ignored." in found.note


def test_a_label_map_says_what_labels_mean(tmp_path: Path) -> None:
    data = pairs(tmp_path, [0, 128, 255])
    found = open_segmentation(data, label_map=["128:1", "255:2"])
    assert found.classes == 3
    assert found.train[0].mask[0, :4].tolist() == [0, 1, 2, 0]
    assert found.train.classes_in(0) == [0, 1, 2]
    ignored = open_segmentation(data, label_map=["128:ignore", "255:1"])
    assert ignored.classes == 2
    assert ignored.train[0].mask[0, :3].tolist() == [0, 255, 1]
    with pytest.raises(DovetailError, match="contains label 128 on 16 pixels, which is not in the label map"):
        open_segmentation(data, label_map=["255:128"])
    with pytest.raises(DovetailError, match="its own labels; omit --label-map"):
        open_segmentation(voc(tmp_path / "voc"), label_map=["255:1"])


COLOURS = {"road": (128, 64, 128), "tree": (0, 128, 0), "sky": (70, 130, 180)}
TABLES = {
    "labelmap.txt": "# label:color_rgb::\n" + "".join(f"{n}:{r},{g},{b}::\n" for n, (r, g, b) in COLOURS.items()),
    "class_dict.csv": "name,r,g,b\n" + "".join(f"{n},{r},{g},{b}\n" for n, (r, g, b) in COLOURS.items()),
    "label_colors.txt": "".join(f"{r} {g} {b}\t\t{n}\n" for n, (r, g, b) in COLOURS.items()),
}


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_of_masks_are_looked_up_in_a_table(mode: str, table: str, tmp_path: Path) -> None:
    data = pairs(tmp_path, [0])
    pixels = np.zeros((SIZE[1], SIZE[0], 3), np.uint8) + np.array(COLOURS["road"], np.uint8)
    pixels[:, 1], pixels[:, 2] = COLOURS["tree"], COLOURS["sky"]
    for path in (data / "masks").iterdir():
        image = Image.fromarray(pixels)
        (image.quantize(8) if mode == "P" else image.convert(mode)).save(path)
    (tmp_path / table).write_text(TABLES[table])
    found = open_segmentation(data, label_map=[str(tmp_path / table)])
    assert found.names == ("road", "tree", "sky")
    assert found.train[0].mask[0, :4].tolist() == [0, 1, 2, 0]
    pixels[0, 0] = 1, 2, 3
    Image.fromarray(pixels).save(data / "masks" / "0.png")
    faults = [*found.train.faults(), *found.val.faults()]
    assert len(faults) == 1
    assert "colour 1,2,3 on 1 pixel, which is not in the label map" in faults[0]
    plain = open_segmentation(data, label_map=["128,64,128:0", "#008000:1", "70,130,180:ignore", "1,2,3:ignore"])
    assert plain.classes == 2


def test_grey_masks_saved_in_colour_are_labels_and_jpegs_are_none(tmp_path: Path) -> None:
    data = pairs(tmp_path, [0, 1, 2])
    for path in (data / "masks").iterdir():
        Image.open(path).convert("RGB").save(path)
    assert open_segmentation(data).classes == 3
    Image.new("L", SIZE).save(data / "masks" / "0.png", "JPEG")
    with pytest.raises(DovetailError, match=r"0\.png is a JPEG, which mixes labels"):
        open_segmentation(data)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["nowhere.txt"], "nowhere.txt cannot be read"),
        (["255"], "The label map 255 cannot be read"),
        (["255:1", "red:2"], "got red:2"),
        (["255:1", "255:2"], "has a value twice"),
        (["255:1", "1,2,3:2"], "has both colours and labels"),
        (["300,0,0:1"], "values are at most 255"),
    ],
)
def test_label_maps_that_are_none(given: list[str], words: str, tmp_path: Path) -> None:
    with pytest.raises(DovetailError, match=words):
        open_segmentation(pairs(tmp_path, [0, 1]), label_map=given)
