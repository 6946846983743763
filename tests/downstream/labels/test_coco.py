"""COCO files: quirks are met, faults are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dovetail.downstream.labels.coco import CocoSet, faults_of, find_coco, with_files
from dovetail.downstream.labels.coco_doubts import doubts_about_boxes
from dovetail.downstream.labels.coco_object import CocoObject
from dovetail.errors import DovetailError, MissingFilesError
from tests.downstream.coco_files import SIDE, write_coco


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_coco(tmp_path) / "annotations" / "instances_train2017.json"


def test_reads_polygons_run_lengths_crowds_and_gaps_in_ids(file: Path) -> None:
    found = CocoSet.open(file)
    assert (found.names, found.ids) == (("cat", "kite"), (17, 38))
    first, empty, third = found.images
    assert [one.label for one in first.objects] == [0, 1, 0, 1]
    assert [one.crowd for one in first.objects] == [False, False, True, False]
    assert [one.has_area for one in first.objects] == [True, True, True, False]
    assert empty.objects == ()
    mask = first.objects[0].mask(SIDE, SIDE)
    assert mask[10, 10]
    assert mask[27, 5]  # the second part
    assert not mask[27, 20]
    assert abs(int(first.objects[1].mask(SIDE, SIDE).sum()) - 36) <= 6  # the polygon of two points is left out
    assert int(first.objects[2].mask(SIDE, SIDE).sum()) == 50
    assert not first.objects[3].mask(SIDE, SIDE).any()
    assert third.objects[0].box == (34.0, 2.0, 5.0, 10.0)  # computed from the mask
    assert third.objects[0].area == 50


@pytest.mark.parametrize("nothing", [[[]], [[8, 8, 14, 14]], [[], [8, 8, 14, 14]]])
def test_polygons_that_hold_nothing_are_no_mask(nothing: list[Any], file: Path) -> None:
    found = CocoSet.open(changed(file, lambda content: content["annotations"][1].update(segmentation=nothing)))
    one = found.images[0].objects[1]
    assert one.segmentation is None
    assert found.images[0].unmasked == (one,)  # the object of no area has no box either


def test_a_box_touches_whole_pixels() -> None:
    one = CocoObject(1, 0, (-2.5, 1.5, 4.0, 2.1), None, 8.0, crowd=False)
    assert one.touched == (slice(1, 4), slice(0, 2))
    assert CocoObject(1, 0, (-5, -5, 2, 2), None, 4.0, crowd=False).touched == (slice(0, 0), slice(0, 0))


@pytest.mark.parametrize("box", [(500.0, 3.0, 1e-5, 4.0), (3.0, 500.0, 4.0, 1e-5), (0.0, 0.0, 1e-5, 4.0)])
def test_boxes_that_float32_cannot_tell_from_nothing_have_no_area(box: tuple[float, float, float, float]) -> None:
    assert not CocoObject(1, 0, box, None, 1.0, crowd=False).has_area


def changed(file: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))
    return file


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda c: c["annotations"][0].update(category_id=99), "annotation 11 has category 99"),
        (lambda c: c["annotations"][1].update(image_id=77), "annotation 12 belongs to image 77"),
        (lambda c: c.pop("categories"), "has no categories; COCO instance files contain lists"),
        (lambda c: c["images"][0].pop("width"), "an entry of images has no width"),
        (lambda c: c["images"][1].update(id=1), "several images with the same id"),
        (lambda c: c["annotations"][4].pop("segmentation"), "annotation 15 has neither a box nor a mask"),
        (lambda c: c.update(categories=[]), "has no categories"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, 3]), "annotation 11 has the box [1, 2, 3]"),
        (lambda c: c["annotations"][2]["segmentation"].pop("size"), "the mask of annotation 13 has no size"),
        (lambda c: c["annotations"][0].update(segmentation=[3, 4, 5, 6]), "a polygon of annotation 11"),
        (lambda c: c["annotations"][0].update(segmentation="mask.png"), "the mask of annotation 11 is a str"),
        (lambda c: c["annotations"][0]["segmentation"][0].append(float("nan")), "a polygon of annotation 11"),
        (lambda c: c["annotations"][0]["segmentation"][0].extend([1e9, 3]), "a polygon of annotation 11"),
        (lambda c: c["annotations"][0]["segmentation"][0].extend(["4", 3]), "a polygon of annotation 11"),
        (lambda c: c["annotations"][0].update(bbox=[1, 2, float("inf"), 3]), "annotation 11 has the box [1, 2, inf"),
        (lambda c: c["annotations"][2]["segmentation"]["counts"].append(7), "annotation 13 cannot be decoded"),
        (lambda c: c["annotations"][4]["segmentation"].update(counts="nonsense!"), "annotation 15 cannot be decoded"),
        (lambda c: c["annotations"][4]["segmentation"].update(size=[41, 40]), "annotation 15 are for [41, 40]"),
        (lambda c: c["images"][0].update(id="one"), "images has id 'one', which is not a whole number"),
        (lambda c: c["images"][0].update(width=0), "images has width 0"),
        (lambda c: c["annotations"][0].update(id=None), "has no id that is a whole number"),
        (lambda c: c["annotations"][0].update(category_id=[17]), "annotation 11 has category [17]"),
        (lambda c: c["annotations"][0].update(image_id={}), "annotation 11 belongs to image {}"),
        (lambda c: c["annotations"][0].update(area="big"), "annotation 11 has area 'big'"),
        (lambda c: c["annotations"][0].update(area=-3), "annotation 11 has area -3"),
        (lambda c: c["annotations"][0].update(iscrowd="no"), "annotation 11 has iscrowd 'no'"),
        (lambda c: c["images"][0].update(file_name=5), "images has file_name 5, which is not text"),
        (lambda c: c["images"][0].update(file_name="x" * 20_000), "has 20,000 characters, more than file systems"),
        (lambda c: c["images"][0].update(file_name="ä" * 128), "has 128 characters, more than file systems"),
        (lambda c: c["images"][0].update(file_name="a/" * 600), "has 1,200 characters, more than file systems"),
        (lambda c: c["annotations"][0].update(image_id="y" * 20_000), "annotation 11 belongs to image 'yyy"),
        (lambda c: c["annotations"][0].update(category_id="z" * 20_000), "annotation 11 has category 'zzz"),
        (lambda c: c["categories"].append({"id": 17, "name": "again"}), "several categories with the same id"),
        (lambda c: (c["images"].clear(), c["annotations"].clear()), "has no images"),
    ],
)
def test_faults_of_the_file_are_sentences(change: Callable[[dict[str, Any]], Any], sentence: str, file: Path) -> None:
    with pytest.raises(DovetailError, match=r"instances_train2017\.json") as caught:
        CocoSet.open(changed(file, change))
    listed = faults_of(file)
    assert str(caught.value) == listed[0]
    assert any(sentence in fault for fault in listed)
    assert all(len(fault.removeprefix(str(file))) < 300 for fault in listed)


def test_a_crowd_or_an_area_that_is_null_is_as_one_left_out(file: Path) -> None:
    change = lambda c: c["annotations"][1].update(area=None, iscrowd=None)  # noqa: E731 - as those above
    found = CocoSet.open(changed(file, change)).images[0].objects[1]
    assert (found.area, found.crowd) == (36, False)


def test_broken_json_names_the_file_and_the_place(file: Path) -> None:
    file.write_text(file.read_text()[:-20])
    with pytest.raises(DovetailError, match=r"instances_train2017\.json cannot be read .*column"):
        CocoSet.open(file)


def test_missing_images_are_looked_for(file: Path, tmp_path: Path) -> None:
    (tmp_path / "train2017").rename(tmp_path / "elsewhere")
    with pytest.raises(DovetailError, match=r"000000000001\.png, are not in"):
        CocoSet.open(file)
    assert len(CocoSet.open(file, tmp_path / "elsewhere")) == 3


def test_one_missing_image_does_not_hide_where_the_others_are(file: Path, tmp_path: Path) -> None:
    (tmp_path / "train2017" / "000000000001.png").unlink()
    with pytest.raises(MissingFilesError, match=r"json: there is no file for 1 image, such as .*train2017/0+1\.png"):
        with_files(CocoSet.open(file))


def test_faults_of_images_and_boxes(file: Path, tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["images"][1]["width"] = 41
        content["annotations"][0]["bbox"] = [50, 3, 5, 5]

    found = CocoSet.open(changed(file, change))
    (tmp_path / "train2017" / "000000000003.png").write_bytes(b"")
    faults = list(found.faults())
    assert len(faults) == 4
    for part in (
        "000000000002.png is 40x40 pixels",
        "000000000003.png cannot be read",
        "no area",
        "lies outside of the image",
    ):
        assert sum(part in fault for fault in faults) == 1


def test_whole_numbers_may_be_floats(file: Path) -> None:
    before = CocoSet.open(file)

    def change(content: dict[str, Any]) -> None:
        for key, fields in (
            ("images", ("id", "width", "height")),
            ("categories", ("id",)),
            ("annotations", ("id", "image_id", "category_id", "iscrowd")),
        ):
            for one in content[key]:
                one.update({field: float(one[field]) for field in fields})

    assert CocoSet.open(changed(file, change)) == before


def test_an_image_with_a_wrong_id_is_one_fault(file: Path) -> None:
    faults = faults_of(changed(file, lambda content: content["images"][0].update(id=1.5)))
    assert len([fault for fault in faults if "images has id 1.5" in fault]) == 1
    change = lambda content: [one.update(image_id=1.5) for one in content["annotations"][:4]]  # noqa: E731
    assert faults_of(changed(file, change)) == [fault for fault in faults if "images has id 1.5" in fault]


def test_names_of_windows_are_found(file: Path, tmp_path: Path) -> None:
    (tmp_path / "train2017").rename(tmp_path / "moved")
    (tmp_path / "train2017").mkdir()
    (tmp_path / "moved").rename(tmp_path / "train2017" / "deep")

    def change(content: dict[str, Any]) -> None:
        for one in content["images"]:
            one["file_name"] = f"deep\\{one['file_name']}"

    found = CocoSet.open(changed(file, change))
    with_files(found)
    assert found.images[0].pixels().shape == (3, SIDE, SIDE)


def test_a_byte_order_mark_is_no_fault(file: Path) -> None:
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert len(CocoSet.open(file)) == 3


@pytest.mark.parametrize(("size", "top_left"), [((30, 40), 0), ((40, 30), 200)])
def test_images_that_exif_turns_have_the_annotations_size(
    size: tuple[int, int], top_left: int, file: Path, tmp_path: Path
) -> None:
    pixels = np.zeros((40, 30), np.uint8)  # as it lies: 30 wide, 40 high, bright at the bottom left
    pixels[20:, :15] = 200
    tags = Image.Exif()
    tags[0x0112] = 6  # turned clockwise, the bottom left comes to the top left
    Image.fromarray(pixels).save(tmp_path / "train2017" / "000000000002.png", exif=tags)
    images = CocoSet.open(
        changed(file, lambda content: content["images"][1].update(width=size[0], height=size[1]))
    ).images
    found = images[1].pixels()
    assert tuple(found.shape[1:]) == (size[1], size[0])
    assert int(found[0, 2, 2]) == top_left


def test_roboflows_folders_are_found(tmp_path: Path) -> None:
    write_coco(tmp_path)
    for split, named in (("train", "train"), ("val", "valid")):
        (tmp_path / f"{split}2017").rename(tmp_path / named)
        path = tmp_path / "annotations" / f"instances_{split}2017.json"
        path.rename(tmp_path / named / "_annotations.coco.json")
    (tmp_path / "annotations").rmdir()
    found = find_coco(tmp_path)
    assert found is not None
    assert [path.parent.name for path in found if path is not None] == ["train", "valid"]
    with_files(*(CocoSet.open(path) for path in found if path is not None))


BOXES = ((2, 3, 8, 9), (12, 4, 20, 8), (5, 20, 6, 15), (24, 22, 12, 13), (30, 2, 9, 30))


def boxed(file: Path, write: Callable[[float, float, float, float], list[float]], *, masks: bool) -> Path:
    """Give the first image, 40 high and 60 wide, five boxes in another form, with or without their masks."""

    def change(content: dict[str, Any]) -> None:
        content["images"][0].update(width=60)
        content["annotations"] = [
            {
                "id": number,
                "image_id": 1,
                "category_id": 17,
                "bbox": write(left, top, width, height),
                "area": width * height,
                "segmentation": [[left, top, left + width, top, left + width, top + height, left, top + height]]
                * masks,
            }
            for number, (left, top, width, height) in enumerate(BOXES, 1)
        ]

    return changed(file, change)


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize(
    ("write", "words"),
    [
        (
            lambda left, top, width, height: [left, top, left + width, top + height],
            "if they are left, top, right, bottom",
        ),
        (
            lambda left, top, width, height: [left / 60, top / 40, width / 60, height / 40],
            "all boxes lie between 0 and 1",
        ),
        (lambda left, top, width, height: [left + width / 2, top + height / 2, width, height], "if they are centre x"),
        (lambda left, top, width, height: [top, left, height, width], "if they are top, left, height, width"),
        (lambda left, top, width, height: [left, top, width, height], None),
    ],
)
def test_boxes_of_another_form_are_told(
    write: Callable[[float, float, float, float], list[float]], words: str | None, masks: bool, file: Path
) -> None:
    doubts = doubts_about_boxes(CocoSet.open(boxed(file, write, masks=masks)))
    if words is None:
        assert doubts == []
    elif masks or "top, left" not in words:  # rows for columns may fit the image as well
        assert len(doubts) == 1
        assert words in doubts[0]


def test_objects_that_contradict_themselves_are_faults(file: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        first, second, crowd = content["annotations"][:3]
        first.update(segmentation=[[30, 30, 38, 30, 38, 38, 30, 38]])  # far from its box
        second.update(area=9000)
        content["annotations"] += [{**second, "id": 21, "area": 36}, {**second, "id": 22, "bbox": [8, 8, 0.5, 6]}]
        content["annotations"].append(
            {**first, "id": 23, "segmentation": [[50, 50, 60, 50, 60, 60]], "category_id": 38}
        )
        content["annotations"][3:5] = [crowd | {"id": 24}]

    faults = list(CocoSet.open(changed(file, change)).faults())
    expected = [
        "annotation 11 has a mask of which 100% lies outside its box",
        "annotation 12 has area 9000 in a box of 36 pixels",
        "annotation 21 repeats annotation 12",
        "annotation 22 has a box of less than a pixel in the image",
        "annotation 23 has a mask without a pixel inside the image",
    ]
    for words in expected:
        assert sum(words in fault for fault in faults) == 1, words
    assert len(faults) == len(expected)
