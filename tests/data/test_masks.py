"""Masks and other side data: from folders, from items of a dataset, and computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dovetail.data.loader import make_loader
from dovetail.data.masks import FelzenszwalbMasks, FolderMasks, ItemMasks, Masks, as_labels, open_masks, read_labels
from dovetail.data.open import open_source
from dovetail.data.reading.decode import UnreadableError
from dovetail.data.sources import ImageSource
from dovetail.errors import DovetailError
from dovetail.views.batch import ViewBatch
from dovetail.views.plan import SegmentSpec, ViewPlan, ViewSpec
from tests.data.photos import folder_of

SPEC = SegmentSpec(count=4, scale=50, min_px=20, side_px=32)
PLAN = ViewPlan((ViewSpec(32), ViewSpec(32)), segments=SPEC)


def photos(folder: Path, count: int = 6) -> Path:
    """Return a folder of images, half of them in a subfolder."""
    folder_of(folder, count)
    (folder / "sub").mkdir()
    for path in sorted(folder.glob("*.*"))[::2]:
        path.rename(folder / "sub" / path.name)
    return folder


def masks_for(folder: Path, masks: Path) -> Path:
    """Write a mask for every image: the quarters of the image."""
    for number, path in enumerate(sorted(path for path in folder.rglob("*.*") if path.is_file())):
        with Image.open(path) as image:
            width, height = image.size
        rows, columns = np.arange(height) * 2 // height, np.arange(width) * 2 // width
        labels = (10 * number + 2 * rows[:, None] + columns).astype(np.uint8)
        place = masks / path.relative_to(folder).with_suffix(".png")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels).save(place)
    return masks


def batches(source: ImageSource, plan: ViewPlan, masks: Masks | None, **options: Any) -> list[ViewBatch]:
    """Return the batches of three steps of two images."""
    return list(make_loader(source, plan, masks=masks, global_batch=2, total_steps=3, seed=1, **options))


def test_each_image_gets_the_mask_with_its_path(tmp_path: Path) -> None:
    source = open_source(photos(tmp_path / "photos"))
    masks = open_masks(masks_for(tmp_path / "photos", tmp_path / "masks"), source, PLAN)
    assert isinstance(masks, FolderMasks)
    for batch in batches(source, PLAN, masks):
        for row, index in enumerate(batch.used.tolist()):
            for view in range(2):
                seen = batch.segments[view][row]
                assert set((seen // 10).unique().tolist()) == {index}
        assert batch.picks is not None
        assert batch.picks.shape == (2, 2, 4)


def test_masks_in_a_folder_of_a_list_and_an_archive(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    masks = masks_for(folder, tmp_path / "masks")
    paths = sorted(path for path in folder.rglob("*.*") if path.is_file())
    listed = open_source([str(path) for path in paths])
    found = FolderMasks(listed, masks)
    for index, path in enumerate(paths):
        assert found.labels(index, listed.open(index, 3)).min() // 10 == index, path


def test_missing_and_misfit_masks_are_told(tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos")
    masks = masks_for(folder, tmp_path / "masks")
    source = open_source(folder)
    with pytest.raises(DovetailError, match=r"no folder of masks at .*nowhere.*--masks"):
        open_masks(tmp_path / "nowhere", source, PLAN)
    one = sorted(path for path in masks.rglob("*.png"))[0]
    wide = np.zeros((10, 300), dtype=np.uint8)
    Image.fromarray(wide).save(one)
    kept = open_masks(masks, source, PLAN)
    assert kept is not None
    told = {skipped.reason for batch in batches(source, PLAN, kept) for skipped in batch.skipped}
    assert len(told) == 1
    assert "it has 300 x 10 pixels, but the image has" in told.pop()
    one.unlink()
    with pytest.raises(DovetailError, match=r"no mask in .* for 1 image of 6, .*--masks felzenszwalb"):
        open_masks(masks, source, PLAN)


def test_computed_masks_are_the_same_with_any_workers_and_from_the_cache(tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="needs the extra `masks`")
    source, cache = open_source(photos(tmp_path / "photos")), tmp_path / "cache"
    alone = batches(source, PLAN, FelzenszwalbMasks(SPEC))
    cached = FelzenszwalbMasks(SPEC, cache=cache)
    filling, filled = batches(source, PLAN, cached, num_workers=2), batches(source, PLAN, cached)
    files = sorted(cache.rglob("*.png"))
    assert len(files) == 6
    assert not sorted(cache.rglob("*.tmp"))
    files[0].write_bytes(files[0].read_bytes()[:40])
    damaged = batches(source, PLAN, cached)
    for others in (filling, filled, damaged):
        for one, other in zip(alone, others, strict=True):
            assert all(a.equal(b) for a, b in zip(one.segments, other.segments, strict=True))
    assert max(int(batch.segments[0].max()) for batch in alone) > 0  # there are several segments


def test_computed_masks_of_any_number_of_channels(tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason="needs the extra `masks`")
    for channels in (1, 5):
        array = np.zeros((40, 60, channels), dtype=np.uint8)
        array[:, 30:] = 255
        source = open_source([array])
        labels = FelzenszwalbMasks(SPEC).labels(0, source.open(0, channels))
        assert labels.shape == (21, 32)
        assert labels[:, 0].max() == labels[:, 0].min() != labels[0, -1]


@pytest.mark.parametrize("kind", ["pillow", "array", "tensor"])
def test_masks_in_the_items_of_a_dataset(kind: str) -> None:
    labels = np.kron(np.array([[3, 4]], dtype=np.uint8), np.ones((40, 20), dtype=np.uint8))
    given = {"pillow": Image.fromarray, "array": np.asarray, "tensor": torch.from_numpy}[kind](labels)
    items = [{"image": np.zeros((40, 40, 3), dtype=np.uint8), "masks": given}] * 6
    source = open_source(items)
    masks = open_masks(None, source, PLAN)
    assert isinstance(masks, ItemMasks)
    assert {int(label) for batch in batches(source, PLAN, masks) for label in batch.segments[0].unique()} <= {3, 4}


def test_labels_and_indices_reach_the_views() -> None:
    items: list[Any] = [
        {"image": np.full((40, 40, 3), 9 * number, dtype=np.uint8), "angle": float(number), "box": [number, 0, 1, 1]}
        for number in range(6)
    ]
    items[2] = {"image": "nowhere.png"}
    plan = ViewPlan((ViewSpec(32), ViewSpec(32)), side=("index", "angle", "box"))
    source = open_source(items)
    assert open_masks(None, source, plan) is None
    for batch in batches(source, plan, None):
        assert batch.side["index"].equal(batch.used)
        assert 2 not in batch.used
        assert batch.side["angle"].tolist() == batch.used.tolist()
        assert batch.side["box"][:, 0].equal(batch.used)
        assert batch.side["box"].shape == (2, 4)


def test_the_second_part_of_a_tuple_is_the_label() -> None:
    source = open_source([(np.zeros((40, 40, 3), dtype=np.uint8), number) for number in range(6)])
    plan = ViewPlan((ViewSpec(32),), side=("label",))
    assert open_masks(None, source, plan) is None
    assert all(batch.side["label"].equal(batch.used) for batch in batches(source, plan, None))


def test_what_is_missing_is_told_before_the_run(tmp_path: Path) -> None:
    plain = open_source(folder_of(tmp_path, 2))
    with pytest.raises(DovetailError, match=r"needs masks .*--masks felzenszwalb .*the key 'masks'"):
        open_masks(None, plain, PLAN)
    with pytest.raises(DovetailError, match="does not use masks; omit --masks"):
        open_masks("felzenszwalb", plain, PLAN.without_side())
    with pytest.raises(DovetailError, match=r"side data 'angle', but .* the keys 'image' and 'angle'"):
        open_masks(None, plain, ViewPlan((ViewSpec(32),), side=("index", "angle")))
    with pytest.raises(DovetailError, match="need masks"):
        make_loader(plain, PLAN, global_batch=2, total_steps=1, seed=0)


def test_shapes_of_side_data_that_differ_are_told() -> None:
    items = [{"image": np.zeros((40, 40, 3), dtype=np.uint8), "box": [0] * (number + 1)} for number in range(2)]
    plan = ViewPlan((ViewSpec(32),), side=("box",))
    with pytest.raises(DovetailError, match=r"'box' has the shapes \[1\], \[2\] in one batch"):
        list(make_loader(open_source(items), plan, global_batch=2, total_steps=1, seed=0))


def test_formats_of_masks(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 255, 7]], dtype=np.uint8)
    palette = Image.fromarray(labels)
    palette.putpalette([value for colour in range(256) for value in (colour, 0, 255 - colour)])
    palette.save(tmp_path / "p.png")
    Image.fromarray(labels.astype(np.uint16) * 200).save(tmp_path / "deep.png")
    Image.fromarray(np.stack([labels, labels, labels * 0], axis=2)).save(tmp_path / "rgb.png")
    np.save(tmp_path / "n.npy", labels.astype(np.int64))
    assert read_labels(tmp_path / "p.png").tolist() == labels.tolist()
    assert read_labels(tmp_path / "deep.png").tolist() == [[0, 200, 51000, 1400]]
    assert read_labels(tmp_path / "rgb.png").tolist() == [[0, 257, 255 * 257, 7 * 257]]
    assert read_labels(tmp_path / "n.npy").tolist() == labels.tolist()
    assert as_labels(np.tile(labels, 2)[None]).tolist() == np.tile(labels, 2).tolist()
    for wrong in (labels.astype(np.float32), labels[0], np.zeros((2, 2, 5), dtype=np.uint8)):
        with pytest.raises(UnreadableError, match="expected a mask of integers"):
            as_labels(wrong)
    content = (tmp_path / "n.npy").read_bytes()
    for length in (4, 40, len(content) - 3):
        (tmp_path / "n.npy").write_bytes(content[:length])
        with pytest.raises(UnreadableError):
            read_labels(tmp_path / "n.npy")
    with pytest.raises(UnreadableError, match="32 bits"):
        as_labels(np.array([[1 << 40]]))
