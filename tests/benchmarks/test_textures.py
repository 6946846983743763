"""The set of mosaics: what each part may see, readable by the product's own readers, the same from the same seed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from benchmarks.demo import mosaics
from benchmarks.demo.mosaics import TEXTURES
from benchmarks.scenes.sets import SetPlan, build
from benchmarks.scenes.stock import Split
from benchmarks.scenes.write import SceneSet
from PIL import Image

from dovetail.downstream.labels.readers import open_segmentation

COUNTS: dict[Split, int] = {"unlabelled": 3, "train": 12, "val": 2, "test": 12}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SceneSet:
    """A small set."""
    return build("mosaics", tmp_path_factory.mktemp("cache"), SetPlan(32, COUNTS))


def test_readers_know_both_parts_and_whoever_chooses_sees_no_test_mosaic(made: SceneSet) -> None:
    choose, measure = (open_segmentation(folder, classes=len(TEXTURES)) for folder in (made.choose, made.measure))
    assert [len(part) for part in (choose.train, choose.val, measure.train, measure.val)] == [12, 2, 12, 12]
    assert all(np.array_equal(choose.train[index].image, measure.train[index].image) for index in range(12))
    test = {measure.val[index].image.numpy().tobytes() for index in range(12)}
    others = [choose.val[index].image for index in range(2)] + [choose.train[index].image for index in range(12)]
    assert not test & {image.numpy().tobytes() for image in others}
    assert tuple(measure.val[0].image.shape) == (3, 64, 64)


def test_pieces_lie_in_folders_named_after_their_texture(made: SceneSet) -> None:
    """A piece is what the mosaic of its number shows, whose mask says which texture it is."""
    names = [one.name for one in TEXTURES]
    plan = replace(mosaics.PIECES, side_px=40)
    splits: tuple[tuple[str, mosaics.Split], ...] = (("train", "labelled"), ("val", "test"))
    for part, split in splits:
        paths = sorted((made.folder / "pieces" / part).glob("*/*.png"), key=lambda path: path.name)
        assert [path.stem for path in paths] == [f"{index:04d}" for index in range(12)]
        for index, path in enumerate(paths):
            pixels, mask = mosaics.mosaic(mosaics.read_textures(), plan, split, index)
            with Image.open(path) as piece:
                assert np.array_equal(np.asarray(piece), pixels)
            assert set(np.unique(mask)) == {names.index(path.parent.name)}


def test_the_same_plan_makes_the_same_files(made: SceneSet, tmp_path: Path) -> None:
    assert build("mosaics", tmp_path, SetPlan(32, COUNTS)).fingerprint == made.fingerprint
    assert (
        build("mosaics", tmp_path, SetPlan(32, COUNTS, close=True)).folder
        == build("mosaics", tmp_path, SetPlan(32, COUNTS)).folder
    )
    assert build("mosaics", tmp_path, SetPlan(32, COUNTS, seed=1)).fingerprint != made.fingerprint
