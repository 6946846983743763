"""Labels in masks: gaps, values of colours, label maps, and what is refused with a way out."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dovetail.downstream.labels.checking import check_segmentation
from dovetail.downstream.labels.maps import read_label_map
from dovetail.downstream.labels.readers import open_segmentation
from dovetail.errors import DovetailError
from tests.downstream.labels.mask_files import SIZE, pairs, voc, write_image


@pytest.mark.parametrize("kind", ["gaps", "jpeg", "ignored"])
def test_labels_that_are_no_class_numbers_are_refused_with_a_way_out(kind: str, tmp_path: Path) -> None:
    data = pairs(tmp_path, [0, 128, 255] if kind == "gaps" else [0, 255])
    words = r"contain the labels 0, 128, and 255 is ignored: most numbers .* --label-map 128:1; .* add --classes 129"
    if kind == "jpeg":  # saved as JPEG on the way, and as PNG again
        for path in (data / "masks").iterdir():
            spots = np.random.default_rng(int(path.stem)).integers(0, 3, (12, 12)).repeat(4, 0).repeat(4, 1) * 127
            file = io.BytesIO()
            Image.fromarray(spots.astype(np.uint8)).save(file, "JPEG", quality=60)
            Image.open(file).save(path)
            write_image(data / "images" / f"{path.stem}.jpg", (48, 48))
        words = "labels, [0-9]+ per mask on average. JPEG and smooth resizing mix labels"
    elif kind == "ignored":
        words = "contain only label 0 and 255, and 255 is ignored; if 255 marks a class, add --label-map 255:1"
    with pytest.raises(DovetailError, match=words):
        open_segmentation(data)
    with pytest.raises(DovetailError, match="The dataset has 1 problem"):
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
    with pytest.raises(DovetailError, match="The dataset has 1 problem"):
        check_segmentation(data, None, 255)
    told = capsys.readouterr().out
    assert "for training" in told
    assert "contain only class 1 (ignored: 255)" in told
    assert "Found no faults" not in told


def test_a_few_numbers_that_never_occur_are_told(tmp_path: Path) -> None:
    found = open_segmentation(pairs(tmp_path, [0, 1, 3, 255]))
    assert found.classes == 4
    assert "Labels found: 0 to 1, 3; 255 is ignored." in found.note


def test_masks_of_0_and_255_among_masks_of_classes_are_doubted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = pairs(tmp_path, [0, 1, 2, 255])
    assert "only label 0 and 255" not in open_segmentation(data).note
    first, second, *_ = sorted((data / "masks").iterdir())
    binary(first)
    told = (
        f"Labels found: 0 to 2; 255 is ignored. {first} has only label 0 and 255, while other masks have classes; if "
        "255 marks a class there, save it with the number of the class."
    )
    assert told in open_segmentation(data).note
    check_segmentation(data, None, 255)
    assert told in capsys.readouterr().out
    binary(second)
    told = f"2 masks have only label 0 and 255, while other masks have classes (such as {first}); if 255 marks a class"
    assert told in open_segmentation(data).note
    check_segmentation(data, 3, 255)
    assert told in capsys.readouterr().out


def binary(path: Path) -> None:
    """Rewrite a mask with 0 and 255 only."""
    Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8) * 255).save(path)


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


def test_labels_that_keep_their_number_are_not_in_the_advice(tmp_path: Path) -> None:
    data = pairs(tmp_path, [0, 1, 7, 11, 255])
    with pytest.raises(DovetailError, match="--label-map 7:2 11:3; if") as caught:
        open_segmentation(data)
    assert "255:" not in str(caught.value)
    found = open_segmentation(data, label_map=["7:2", "11:3"])
    assert (found.classes, found.train.ignore_index) == (4, 255)


def test_masks_in_colour_are_told_the_map_of_colours(tmp_path: Path) -> None:
    data = pairs(tmp_path, [0, 1])
    for mask in (data / "masks").iterdir():
        pixels = np.asarray(Image.open(mask))
        Image.fromarray(np.stack([pixels * 255, pixels * 0, pixels * 0], axis=-1).astype(np.uint8)).save(mask)
    with pytest.raises(DovetailError, match=r"is in colour .*--label-map 0,0,0:0 255,0,0:1"):
        open_segmentation(data)
    assert open_segmentation(data, label_map=["0,0,0:0", "255,0,0:1"]).classes == 2


def test_classes_without_names_get_them_from_a_table_of_labels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = pairs(tmp_path, [0, 1, 2, 255])
    advice = "The classes have no names; to name them, add --label-map FILE with a label and its name on each line."
    found = open_segmentation(data)
    assert found.names == ("0", "1", "2")
    assert found.note.endswith(advice)
    check_segmentation(data, None, 255)
    assert capsys.readouterr().out.count(advice) == 1
    table = tmp_path / "names.txt"
    table.write_text("0 soil\n1 wheat\n2 weed\n")  # 255 is ignored as without it
    named = open_segmentation(data, label_map=[str(table)])
    assert (named.names, named.classes) == (("soil", "wheat", "weed"), 3)
    assert advice not in named.note
    for index in range(len(found.train)):
        assert torch.equal(named.train[index].mask, found.train[index].mask)
    assert any(255 in item.mask for item in (named.train[index] for index in range(len(named.train))))
    check_segmentation(data, None, 255, [str(table)])
    assert advice not in capsys.readouterr().out


def test_a_table_may_name_the_ignored_label_or_be_read_without_one(tmp_path: Path) -> None:
    table = tmp_path / "names.txt"
    table.write_text("0 soil\n255 wheat\n")
    found = read_label_map([str(table)], 255)
    assert found is not None
    assert dict(zip(found.values, found.targets, strict=True)) == {0: 0, 255: 1}
    table.write_text("0 soil\n1 wheat\n")
    for ignored, values in ((255, (0, 1, 255)), (-1, (0, 1))):
        found = read_label_map([str(table)], ignored)
        assert found is not None
        assert found.values == values
