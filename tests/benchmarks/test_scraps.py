"""The set of scraps: objects as the annotations say, of parts of the photographs that each split may see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks.demo import mosaics
from benchmarks.scenes.scraps import SMALLEST, scene_of_scraps
from benchmarks.scenes.sets import SetPlan, build
from benchmarks.scenes.stock import Split
from benchmarks.scenes.write import SceneSet
from PIL import Image

from dovetail.downstream.detect.job import open_detection

COUNTS: dict[Split, int] = {"unlabelled": 3, "train": 8, "val": 2, "test": 6}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SceneSet:
    """A small set."""
    return build("scraps", tmp_path_factory.mktemp("cache"), SetPlan(32, COUNTS))


def test_readers_know_both_parts_and_boxes_are_those_of_the_masks(made: SceneSet) -> None:
    choose, measure = open_detection(made.choose), open_detection(made.measure)
    assert [len(part) for part in (choose[0], choose[1], measure[0], measure[1])] == [8, 2, 8, 6]
    assert measure[0].names == tuple(one.name for one in mosaics.TEXTURES)
    counts = set()
    for image in measure[1].images:
        counts.add(len(image.objects))
        for one in image.objects:
            mask = one.mask(image.height, image.width)
            rows, columns = np.nonzero(mask)
            box = (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1)
            assert one.box == pytest.approx(box)
            assert mask.sum() >= SMALLEST * 64**2
    assert counts <= {0, 1, 2, 3}
    assert max(counts) > 1


def test_an_object_has_the_texture_that_its_label_says() -> None:
    """With every photograph of one grey value of its own, and no spread, pixels tell the texture."""
    plan = replace(mosaics.MOSAICS, side_px=64, scale=(1.0, 1.0), contrast=(1.0, 1.0), brightness=0.0)
    flat = [np.full((200, 400), value, dtype=np.float32) for value in range(10)]
    striped = [one.copy() for one in flat]
    striped[4][:, ::2] += 50.0  # the only one with anything to see
    found = 0
    for index in range(40):
        scene = scene_of_scraps(striped, plan, "labelled", index)
        for number, label in enumerate(scene.labels, start=1):
            spread = scene.pixels[scene.owners == number].std()
            assert bool(spread > 10) == (label == 4)
            found += label == 4
        assert scene.mask[scene.owners == 0].max(initial=0) == 0
    assert found > 3


def test_parts_of_the_photographs_stay_apart(made: SceneSet) -> None:
    """Test scenes hold nothing of the halves that training scenes are cut from."""
    marked = [np.zeros((200, 400), dtype=np.float32) for _ in mosaics.TEXTURES]
    for one in marked:
        one[:, 300:] = np.arange(100)
    plan = replace(mosaics.MOSAICS, side_px=64, scale=(1.0, 1.0))
    assert scene_of_scraps(marked, plan, "labelled", 0).pixels.std() == 0
    assert scene_of_scraps(marked, plan, "validation", 0).pixels.std() == 0
    assert scene_of_scraps(marked, plan, "test", 0).pixels.std() > 10


def test_the_same_plan_makes_the_same_files(made: SceneSet, tmp_path: Path) -> None:
    again = build("scraps", tmp_path, SetPlan(32, COUNTS, close=True))
    assert again.fingerprint == made.fingerprint
    assert build("scraps", tmp_path, SetPlan(32, COUNTS, seed=1)).fingerprint != made.fingerprint
    with Image.open(again.folder / "images" / "train" / "00000.jpg") as image:
        assert image.size == (64, 64)
    assert not (again.folder / "images" / "unlabelled").exists()
