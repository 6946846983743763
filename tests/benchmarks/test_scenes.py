"""Scenes have exact masks, splits that share nothing, annotations that agree with the masks, and a stable checksum."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import faster_coco_eval.core.mask as coco_mask
import numpy as np
import pytest
import torch
from benchmarks.scenes import sets
from benchmarks.scenes.baselines import background_alone, baseline
from benchmarks.scenes.compose import Scene, ScenePlan, chosen_objects, indoors, outdoors, scene
from benchmarks.scenes.fetch import Fetched, default_cache
from benchmarks.scenes.paste import Colours, Light, Sprite, pasted
from benchmarks.scenes.sheet import draw_sheet
from benchmarks.scenes.stock import OTHER, SHARES, SPLITS, Cutout, Photograph, Split, Stock, divided, side_of
from benchmarks.scenes.write import MANIFEST, SceneSet, fingerprint_of, made_once, write_scenes
from PIL import Image

from dovetail.downstream.labels.labelled import Labelled
from dovetail.downstream.labels.readers import open_segmentation
from dovetail.errors import DovetailError

COLOURS = {OTHER: (90, 90, 90), 0: (250, 30, 30), 1: (30, 250, 30)}
DARK = Light(slant=0.3, strength=0.5, blur=0.02)
PLAN = ScenePlan(side_px=64, seed=3)
COUNTS: dict[Split, int] = {"unlabelled": 3, "train": 3, "val": 2, "test": 3}


def stock() -> Stock:
    """Return red and green discs, two of each group, grey ones of no class, and photographs of grey ramps."""
    objects = []
    for label, colour in COLOURS.items():
        for number in range(16):
            picture = Image.new("RGBA", (60, 40), (*colour, 0))
            rows, columns = np.mgrid[:40, :60]
            inside = ((rows - 20) / 18) ** 2 + ((columns - 30) / 28) ** 2 < 1
            picture.putalpha(Image.fromarray((inside * 255).astype(np.uint8)))
            objects.append(Cutout(f"{label}-{number}", label, f"{label}-{number // 2}", picture))
    ramp = np.tile(np.linspace(60, 120, 100).astype(np.uint8)[:, None, None], (1, 130, 3))
    photographs = [Photograph(f"p{number}", Image.fromarray(ramp)) for number in range(10)]
    return Stock(("red", "green"), objects, photographs)


def square(label: int, value: float, top: int, left: int, side: int = 6) -> Sprite:
    """Return an opaque grey square."""
    colours: Colours = np.full((side, side, 3), value, dtype=np.float32)
    return Sprite(label, colours, np.ones((side, side), dtype=np.float32), top, left)


def test_owners_are_those_who_are_seen() -> None:
    """The nearer square hides a corner of the farther one; without shadows the pixels say who owns them."""
    background: Colours = np.full((16, 16, 3), 0.1, dtype=np.float32)
    near, far = square(1, 0.9, top=6, left=6), square(0, 0.5, top=2, left=2)
    canvas, owners, labels = pasted(background, [near, far], Light(0.2, 0.0, 0.02), min_visible=0.3, min_pixels=4)
    assert labels == [0, 1]  # from far to near
    assert np.array_equal(owners == 1, np.isclose(canvas[..., 0], 0.5))
    assert np.array_equal(owners == 2, np.isclose(canvas[..., 0], 0.9))
    assert [(owners == number).sum() for number in (1, 2)] == [36 - 4, 36]


def test_what_is_hidden_is_taken_away_and_the_rest_pasted_anew() -> None:
    background: Colours = np.zeros((16, 16, 3), dtype=np.float32)
    hidden, cover = square(0, 0.5, top=4, left=4), square(1, 0.9, top=3, left=3, side=8)
    canvas, owners, labels = pasted(background, [hidden, cover], DARK, min_visible=0.3, min_pixels=4)
    alone = pasted(background, [cover], DARK, min_visible=0.3, min_pixels=4)
    assert labels == [1]
    assert np.array_equal(owners, alone[1])
    assert np.array_equal(canvas, alone[0])


def test_objects_of_no_class_hide_but_are_background() -> None:
    background: Colours = np.full((16, 16, 3), 0.1, dtype=np.float32)
    sprites = [square(0, 0.5, top=2, left=2), square(OTHER, 0.9, top=4, left=2), square(1, 0.7, top=9, left=9)]
    canvas, owners, labels = pasted(background, sprites, Light(0.0, 0.0, 0.02), min_visible=0.1, min_pixels=4)
    assert labels == [0, 1]
    assert (owners[4:10, 2:8] == 0).all()
    assert np.allclose(canvas[4:10, 2:8], 0.9)
    assert [(owners == number).sum() for number in (1, 2)] == [12, 36]


def test_shadows_darken_the_ground_and_change_no_mask() -> None:
    background: Colours = np.full((32, 32, 3), 0.6, dtype=np.float32)
    sprite = square(0, 0.6, top=10, left=12, side=9)
    with_shadow = pasted(background, [sprite], DARK, min_visible=0.3, min_pixels=4)
    without = pasted(background, [sprite], Light(0.3, 0.0, 0.02), min_visible=0.3, min_pixels=4)
    assert np.array_equal(with_shadow[1], without[1])
    ground = with_shadow[1] == 0
    assert (with_shadow[0][ground] <= without[0][ground] + 1e-6).all()
    assert with_shadow[0][18:22, 12:24].min() < 0.55


@pytest.mark.parametrize("backdrop", [outdoors, indoors])
def test_a_scene_is_a_function_of_plan_split_and_index(backdrop: Any) -> None:
    material = stock()
    first = scene(material, PLAN, backdrop, "test", 1)
    again = scene(material, PLAN, backdrop, "test", 1)
    assert np.array_equal(first.pixels, again.pixels)
    assert np.array_equal(first.owners, again.owners)
    others = [
        scene(material, PLAN, backdrop, "test", 2),
        scene(material, PLAN, backdrop, "train", 1),
        scene(material, ScenePlan(side_px=64, seed=4), backdrop, "test", 1),
    ]
    assert all(not np.array_equal(first.pixels, other.pixels) for other in others)


def test_masks_cover_the_pixels_of_the_objects_and_no_others() -> None:
    """Red and green objects on grey: the strongest channel gives the mask back, but for the soft rim."""
    material, plan = stock(), ScenePlan(side_px=96, others=(0, 0))
    wrong, total, seen = 0, 0, 0
    for index in range(12):
        one = scene(material, plan, outdoors, "test", index)
        red, green = one.pixels[..., 0].astype(int), one.pixels[..., 1].astype(int)
        guess = np.where(red - green > 40, 1, np.where(green - red > 40, 2, 0))
        wrong, total, seen = wrong + int((guess != one.mask).sum()), total + guess.size, seen + int((guess > 0).sum())
        assert one.owners.max() == len(one.labels)
        assert set(np.unique(one.owners)) == set(range(len(one.labels) + 1))
    assert seen > 0.05 * total
    assert wrong < 0.03 * total


def test_nothing_is_twice_in_a_scene() -> None:
    material = stock().of("val", 0)
    for seed in range(40):
        chosen = chosen_objects(material, ScenePlan(objects=(4, 8)), np.random.default_rng(seed))
        assert len({one.name for one in chosen}) == len(chosen)


def test_splits_share_neither_groups_nor_photographs() -> None:
    material = stock()
    sides = {split: material.of(side_of(split), 5) for split in SPLITS}
    for first, second in (("train", "val"), ("train", "test"), ("val", "test"), ("unlabelled", "test")):
        one, other = sides[first], sides[second]
        assert not {cutout.group for cutout in one.cutouts} & {cutout.group for cutout in other.cutouts}
        assert not {photo.name for photo in one.photographs} & {photo.name for photo in other.photographs}
    assert [one.name for one in sides["unlabelled"].cutouts] == [one.name for one in sides["train"].cutouts]
    held = [one for side in ("train", "val", "test") for one in sides[side].cutouts]
    assert len(held) == len(material.cutouts)
    assert all({one.label for one in side.cutouts} == {OTHER, 0, 1} for side in sides.values())


def test_sides_hold_about_their_shares() -> None:
    groups = [f"g{number % 70}" for number in range(300)]
    sides = divided(groups, (0, 1))
    for side, share in SHARES.items():
        assert abs(sum(sides[group] == side for group in groups) / len(groups) - share) < 0.03
    assert divided(groups, (0, 1)) == sides != divided(groups, (0, 2))


def written(folder: Path) -> dict[str, Any]:
    """Write a few scenes of the synthetic stock."""
    material = stock()
    makers = {split: partial(scene, material.of(side_of(split), 0), PLAN, outdoors, split) for split in COUNTS}
    return write_scenes(folder, material.classes, makers, COUNTS)


def test_coco_files_agree_with_the_masks(tmp_path: Path) -> None:
    facts = written(tmp_path)
    seen = 0
    for place, split in (("choose", "val"), ("measure", "test")):
        content = json.loads((tmp_path / place / "instances_val.json").read_text())
        assert [one["name"] for one in content["categories"]] == ["red", "green"]
        for image in content["images"]:
            stem = Path(image["file_name"]).stem
            assert (tmp_path / image["file_name"]).is_file()
            mask, instances = (
                np.asarray(Image.open(tmp_path / kind / split / f"{stem}.png")) for kind in ("masks", "instances")
            )
            own = [one for one in content["annotations"] if one["image_id"] == image["id"]]
            for number, one in enumerate(own, start=1):
                decoded = coco_mask.decode(one["segmentation"]).astype(bool)
                assert np.array_equal(decoded, instances == number)
                assert (mask[decoded] == one["category_id"]).all()
                rows, columns = np.nonzero(decoded)
                box = [columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
                assert one["bbox"] == box
                assert one["area"] == decoded.sum()
                seen += 1
            assert instances.max() == len(own)
    assert seen == sum(facts["objects"]["val"]) + sum(facts["objects"]["test"]) > 5
    assert not (tmp_path / "masks" / "unlabelled").exists()


def test_the_readers_give_the_masks_back(tmp_path: Path) -> None:
    written(tmp_path)
    data = open_segmentation(tmp_path / "measure")
    assert (data.classes, len(data.train), len(data.val)) == (3, COUNTS["train"], COUNTS["test"])
    for index in range(len(data.val)):
        with Image.open(tmp_path / "masks" / "test" / f"{index:05d}.png") as mask:
            assert np.array_equal(data.val[index].mask.numpy(), np.asarray(mask))
    chosen = open_segmentation(tmp_path / "choose")
    assert (len(chosen.train), len(chosen.val)) == (COUNTS["train"], COUNTS["val"])


def made(folder: Path) -> SceneSet:
    """Make the synthetic set once."""
    return made_once(folder, written, {"side": 64}, [], "A note.")


def test_a_set_is_made_once_and_always_the_same(tmp_path: Path) -> None:
    first = made(tmp_path / "one")
    stamp = (first.folder / MANIFEST).stat().st_mtime_ns
    assert made(tmp_path / "one") == first
    assert (first.folder / MANIFEST).stat().st_mtime_ns == stamp
    assert made(tmp_path / "two").fingerprint == first.fingerprint == fingerprint_of(first.folder)
    assert (first.folder / "LICENCES.txt").read_text() == "A note."


def test_a_set_with_changed_files_is_refused(tmp_path: Path) -> None:
    first = made(tmp_path / "one")
    next((first.folder / "images" / "test").iterdir()).write_bytes(b"")
    with pytest.raises(DovetailError, match="have changed; delete the folder"):
        made(tmp_path / "one")


def test_a_set_that_breaks_off_leaves_nothing(tmp_path: Path) -> None:
    def broken(folder: Path) -> dict[str, Any]:
        written(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        made_once(tmp_path / "one", broken, {}, [], "")
    assert list(tmp_path.iterdir()) == []


def test_a_sheet_shows_pictures_beside_their_masks(tmp_path: Path) -> None:
    folder = made(tmp_path / "one").folder
    with Image.open(draw_sheet(folder, tmp_path / "sheet.png")) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    mask = np.asarray(Image.open(folder / "masks" / "test" / "00000.png"))
    assert np.array_equal(pixels[:64, 64:128].any(-1), mask > 0)


def two_coloured(seed: int) -> list[Labelled]:
    """Return scenes whose class is told by colour, and by texture: class 1 is red with stripes, class 0 flat blue."""
    items = []
    for shift in range(3):
        mask = torch.zeros(64, 64, dtype=torch.int64)
        mask[:, 12 + 6 * (shift + seed) :] = 1
        image = torch.stack([mask * 220, mask * 0, (1 - mask) * 220]).to(torch.uint8)
        image[:, ::4] = (image[:, ::4] * (1 - 0.5 * mask[::4])).to(torch.uint8)
        items.append(Labelled(image, mask))
    return items


@pytest.mark.parametrize("cue", ["colour", "edges"])
def test_a_cue_that_tells_the_class_is_found(cue: str) -> None:
    told = baseline(cue, two_coloured(0), two_coloured(2), classes=2)
    assert told.miou > 0.75 > background_alone(two_coloured(2), classes=2).miou


def test_a_cue_that_tells_nothing_is_no_better_than_background() -> None:
    grey = [Labelled(torch.full_like(item.image, 128), item.mask) for item in two_coloured(0)]
    assert baseline("colour", grey, grey, classes=2).miou <= 0.5


def test_background_alone_by_hand() -> None:
    mask = torch.zeros(4, 4, dtype=torch.int64)
    mask[0] = 1
    scores = background_alone([Labelled(torch.zeros(3, 4, 4, dtype=torch.uint8), mask)], classes=2)
    assert (scores.miou, scores.accuracy) == pytest.approx((0.375, 0.75))


def test_close_scenes_show_fewer_and_larger_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The usual and the close `stamps` at 224 px, of the synthetic stock."""
    monkeypatch.setattr(sets.cutouts, "fetch_stamps", lambda cache: Fetched(cache, "stamps.deb", "0", True))
    monkeypatch.setattr(sets.backgrounds, "fetch_photographs", lambda cache: [])
    monkeypatch.setattr(sets.cutouts, "CLASSES", stock().classes)
    monkeypatch.setattr(sets.cutouts, "read_stamps", lambda folder: stock().cutouts)
    monkeypatch.setattr(sets.backgrounds, "read_photographs", lambda folders: stock().photographs)
    counts: dict[Split, int] = {"test": 16}
    sizes, numbers = {}, {}
    for close in (False, True):
        made_set = sets.build("stamps", tmp_path, sets.SetPlan(224, counts, close=close))
        content = json.loads((made_set.measure / "instances_val.json").read_text())
        assert {(one["width"], one["height"]) for one in content["images"]} == {(224, 224)}
        sizes[close] = float(np.median([one["area"] for one in content["annotations"]]))
        numbers[close] = len(content["annotations"])
    assert sizes[True] > 1.5 * sizes[False]
    assert numbers[True] < numbers[False]


def test_an_unknown_set_is_named() -> None:
    with pytest.raises(DovetailError, match="stamps"):
        sets.build("stamp", Path("nowhere"))


def test_a_scene_knows_its_mask() -> None:
    owners = np.array([[0, 1], [2, 2]], dtype=np.uint8)
    one = Scene(np.zeros((2, 2, 3), np.uint8), owners, [4, 0])
    assert one.mask.tolist() == [[0, 5], [1, 1]]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stamps", "rooms", "corridors"])
def test_real_packages_make_the_set(name: str, tmp_path: Path) -> None:
    """Needs the packages: those in the user's cache, or fetched into it."""
    packages = default_cache() / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    (tmp_path / "packages").symlink_to(packages)
    plan = sets.SetPlan(64, {"unlabelled": 4, "train": 6, "val": 2, "test": 4})
    try:
        made_set = sets.build(name, tmp_path, plan)
    except DovetailError as error:
        pytest.skip(f"the packages of {name} cannot be had here: {error}")
    assert made_set.known
    data = open_segmentation(made_set.measure)
    assert (len(data.train), len(data.val)) == (6, 4)
    assert any(bool((data.val[index].mask > 0).any()) for index in range(4))
    manifest = json.loads((made_set.folder / MANIFEST).read_text())
    used = manifest.get("used")
    if used is not None:
        for kind in ("cutouts", "photographs"):
            assert not set(used["train"][kind]) & set(used["test"][kind])
            assert not set(used["unlabelled"][kind]) & set(used["test"][kind])
    else:
        assert not set(manifest["levels"]["train"]) & set(manifest["levels"]["test"])
