"""The rendered scenes: what stands where is decided here and checked without Blender, which a slow test runs."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.scenes import sets
from benchmarks.scenes.fetch import default_cache
from benchmarks.scenes.licences import DEMO
from benchmarks.scenes.stock import SPLITS, Split
from benchmarks.scenes.tabletop import __main__ as command
from benchmarks.scenes.tabletop import demo, environment, frames, neighbours
from benchmarks.scenes.tabletop.classes import ASSETS, CLASSES, assets, floors
from benchmarks.scenes.tabletop.plan import Asset, Camera, Stock, overlap, plan_scene, shown, side_stock
from benchmarks.scenes.write import fingerprint_of
from PIL import Image

from dovetail.downstream.labels.readers import open_segmentation
from dovetail.errors import DovetailError

SIDE_PX = 32


def stock() -> Stock:
    """Return assets of all classes with boxes of several shapes, and floors of both kinds."""
    every = tuple(
        Asset(
            str(one["name"]), str(one["name"]).rpartition("-")[0], (-0.2, -0.1, 0.05), (0.3, 0.2, 0.2 + number % 7 / 5)
        )
        for number, one in enumerate(assets())
    )
    pictures = [f"painted/{one['name']}" for one in floors()] + [f"photograph/p/{number}" for number in range(30)]
    return Stock(CLASSES, every, tuple(pictures))


def test_every_class_has_assets_and_every_name_is_one_thing() -> None:
    assert len(CLASSES) >= 12
    names = [one["name"] for one in assets()]
    assert len(names) == len(set(names)) == ASSETS * len(CLASSES)
    assert len({(one["factory"], one["seed"]) for one in assets()}) == len(names)
    painted = [one["name"] for one in floors()]
    assert len(painted) == len(set(painted)) >= 30


def test_splits_share_no_asset_floor_or_light() -> None:
    sides = {split: side_stock(stock(), 3, split) for split in SPLITS}
    for one, other in (("train", "val"), ("train", "test"), ("val", "test"), ("unlabelled", "test")):
        first, second = sides[one], sides[other]
        assert not {asset.name for asset in first.assets} & {asset.name for asset in second.assets}
        assert not set(first.floors) & set(second.floors)
        assert not set(first.lights) & set(second.lights)
    assert sides["unlabelled"] == sides["train"]
    held = [sides[split] for split in ("train", "val", "test")]
    assert sum(len(side.assets) for side in held) == len(stock().assets)
    assert sum(len(side.floors) for side in held) == len(stock().floors)
    for side in held:
        assert {asset.label for asset in side.assets} == set(CLASSES)
        assert {floor.partition("/")[0] for floor in side.floors} == {"painted", "photograph"}
    assert [len(side.assets) for side in held] == [11 * len(CLASSES), 3 * len(CLASSES), 6 * len(CLASSES)]


def test_a_scene_is_a_function_of_seed_split_and_index() -> None:
    side = side_stock(stock(), 0, "test")
    first = plan_scene(side, 0, "test", 1)
    assert plan_scene(side_stock(stock(), 0, "test"), 0, "test", 1) == first
    assert json.loads(json.dumps(first.to_json())) == json.loads(json.dumps(plan_scene(side, 0, "test", 1).to_json()))
    for other in (plan_scene(side, 0, "test", 2), plan_scene(side, 0, "val", 1), plan_scene(side, 1, "test", 1)):
        assert other.camera != first.camera
        assert other.objects != first.objects


def test_scenes_hold_four_to_seven_objects_that_the_image_shows_and_that_stand_apart() -> None:
    side = side_stock(stock(), 0, "val")
    by_name = {asset.name: asset for asset in side.assets}
    numbers = set()
    for index in range(40):
        scene = plan_scene(side, 0, "val", index)
        numbers.add(len(scene.objects))
        assert len({one.asset for one in scene.objects}) == len(scene.objects)
        assert scene.light.image in side.lights
        assert scene.floor.image in side.floors
        for place, one in enumerate(scene.objects):
            asset = by_name[one.asset]
            assert one.label == asset.label
            width, depth, height = (one.scale * length for length in asset.sides)
            radius = math.hypot(width, depth) / 2
            box, _ = shown(scene.camera, one.x, one.y, radius, height)
            assert overlap(box, (0.0, 0.0, 1.0, 1.0)) >= 0.7
            for other in scene.objects[:place]:
                radii = radius + other.scale * math.hypot(*by_name[other.asset].sides[:2]) / 2
                assert math.hypot(one.x - other.x, one.y - other.y) >= 0.85 * radii - 1e-9
    assert numbers == {4, 5, 6, 7}


def test_the_camera_shows_its_target_in_the_middle_and_what_is_higher_further_up() -> None:
    camera = Camera((3.0, 1.0, 2.0), (0.1, 0.2, 0.25), 50.0)
    ahead, above, beside = camera.seen(np.array([(0.1, 0.2, 0.25), (0.1, 0.2, 0.6), (-0.1, 0.8, 0.25)]))
    assert ahead == pytest.approx([0.5, 0.5, math.dist(camera.place, camera.target)])
    assert above[1] < 0.5 == pytest.approx(above[0])
    assert beside[0] > 0.5  # seen from +x, +y is to the right
    # A metre across the line of sight at distance d is lens / sensor / d of the image.
    across = camera.seen(
        np.array([(0.1, 0.2, 0.25), (0.1 + 0.8 / math.hypot(0.8, 2.9), 0.2 - 2.9 / math.hypot(0.8, 2.9), 0.25)])
    )
    assert abs(across[1, 0] - across[0, 0]) == pytest.approx(50 / 36 / ahead[2])


def test_boxes_cover_what_lies_in_both() -> None:
    assert overlap((0.0, 0.0, 1.0, 1.0), (0.5, 0.5, 2.0, 2.0)) == pytest.approx(0.25)
    assert overlap((0.0, 0.0, 1.0, 1.0), (1.0, 0.0, 2.0, 1.0)) == 0.0


def test_parts_of_every_split_come_early() -> None:
    counts: dict[Split, int] = {"unlabelled": 200, "train": 40, "val": 10, "test": 30}
    order = frames.in_order(counts)
    assert len(order) == len(set(order)) == 280
    for split in counts:
        indices = [index for name, index in order if name == split]
        assert indices == list(range(counts[split]))
    half = [split for split, _ in order[:140]]
    assert half.count("test") >= 22
    assert half.count("unlabelled") >= 75


def save_frame(folder: Path, split: Split, index: int, spec: dict[str, Any], owners: Any) -> None:
    """Write a frame as `trace` does, each object in a grey of its own."""
    path = frames.frame_path(folder, split, index)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.stack([40 * owners] * 3, axis=-1).astype(np.uint8)).save(path.with_suffix(".png"))
    Image.fromarray(owners).save(path.with_name(f"{path.name}-ids.png"))
    path.with_suffix(".json").write_text(json.dumps(spec), encoding="utf-8")


def drawn_frames(folder: Path, counts: dict[Split, int]) -> None:
    """Write frames of planned scenes, object k a square at the k-th place of a grid."""
    for split, count in counts.items():
        side = side_stock(stock(), 0, split)
        for index in range(count):
            scene = plan_scene(side, 0, split, index)
            owners = np.zeros((SIDE_PX, SIDE_PX), np.uint8)
            for number in range(1, len(scene.objects) + 1):
                row, column = divmod(number - 1, 4)
                owners[8 * row : 8 * row + 6, 8 * column : 8 * column + 6] = number
            save_frame(folder, split, index, scene.to_json(), owners)


COUNTS: dict[Split, int] = {"unlabelled": 3, "train": 3, "val": 2, "test": 3}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a cache that holds frames for `COUNTS`; Blender and packages of photographs are out of reach."""
    drawn_frames(frames.frames_folder(tmp_path, SIDE_PX, 0), COUNTS)
    monkeypatch.setattr(sets.backgrounds, "fetch_photographs", lambda cache: [])

    def refused(folder: Path) -> Path:
        raise DovetailError("Blender was called.")

    monkeypatch.setattr(frames, "environment", refused)
    return tmp_path


def test_a_set_is_put_together_from_the_frames(cache: Path) -> None:
    made = sets.build("tabletop", cache, sets.SetPlan(SIDE_PX, COUNTS))
    data = open_segmentation(made.measure)
    assert (data.classes, len(data.train), len(data.val)) == (1 + len(CLASSES), 3, 3)
    scene = plan_scene(side_stock(stock(), 0, "test"), 0, "test", 1)
    for number, one in enumerate(scene.objects):
        row, column = divmod(number, 4)
        assert data.val[1].mask[8 * row + 2, 8 * column + 2] == CLASSES.index(one.label) + 1
    content = json.loads((made.measure / "instances_val.json").read_text())
    assert [one["name"] for one in content["categories"]] == list(CLASSES)
    own = [one for one in content["annotations"] if one["image_id"] == 2]
    assert [one["category_id"] for one in own] == [CLASSES.index(one.label) + 1 for one in scene.objects]
    assert own[0]["bbox"] == [0.0, 0.0, 6.0, 6.0]
    assert len(list(made.unlabelled.glob("*.jpg"))) == 3
    used = json.loads((made.folder / "manifest.json").read_text())["used"]
    for kind in ("assets", "floors", "lights"):
        assert not set(used["train"][kind]) & set(used["test"][kind])
        assert not set(used["unlabelled"][kind]) & set(used["test"][kind])


def test_smaller_sets_use_the_same_frames_and_larger_ones_render(cache: Path) -> None:
    small: dict[Split, int] = {"unlabelled": 1, "train": 2, "val": 1, "test": 2}
    made = sets.build("tabletop", cache, sets.SetPlan(SIDE_PX, small))
    whole = sets.build("tabletop", cache, sets.SetPlan(SIDE_PX, COUNTS))
    name = Path("images") / "test" / "00001.jpg"
    assert (made.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert frames.frames_ready(frames.frames_folder(cache, SIDE_PX, 0)) == COUNTS
    with pytest.raises(DovetailError, match="Blender was called"):
        sets.build("tabletop", cache, sets.SetPlan(SIDE_PX, COUNTS | {"test": 4}))


def test_objects_of_a_few_pixels_are_background(tmp_path: Path) -> None:
    owners = np.zeros((160, 160), np.uint8)
    owners[0, :10], owners[10:20, 10:20] = 1, 2
    spec = {"objects": [{"label": "cup"}, {"label": "sofa"}]}
    save_frame(tmp_path, "test", 0, spec, owners)
    scene = frames.read_frame(tmp_path, "test", 0)
    assert scene.labels == [CLASSES.index("sofa")]
    assert np.array_equal(scene.owners, owners == 2)


def test_a_catalogue_leaves_out_what_could_not_be_made(tmp_path: Path) -> None:
    for one in assets():
        facts = {"failed": "no"} if one["seed"] == 1 else {"low": [0, 0, 0], "high": [1, 2, 3]}
        (tmp_path / f"{one['name']}.json").write_text(json.dumps({**one, **facts}))
    found = frames.read_catalogue(tmp_path)
    assert len(found) == len(assets()) - len(CLASSES)
    assert found[0].sides == (1, 2, 3)
    for one in assets():
        if str(one["name"]).startswith("sofa"):
            (tmp_path / f"{one['name']}.json").write_text(json.dumps({**one, "failed": "no"}))
    with pytest.raises(DovetailError, match="Infinigen created no sofa"):
        frames.read_catalogue(tmp_path)


def test_another_python_is_told_which_one_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PYTHON", (2, 7))
    with pytest.raises(DovetailError, match=r"needs Python 2\.7, but this is Python 3"):
        environment.environment(tmp_path / "environment")
    assert not (tmp_path / "environment").exists()


def test_a_failed_rendering_says_what_blender_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DovetailError, match=r"Blender failed in trace \(.*(bpy|KeyError).*\); run the command again"):
        environment.run_script(Path(sys.executable), "trace", [{}])


def test_the_demo_shows_no_photographs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SIDE_PX", SIDE_PX)
    counts: dict[Split, int] = {"unlabelled": 12, "train": 6, "test": 6}
    drawn_frames(frames.frames_folder(tmp_path, SIDE_PX, 0), counts)
    made = demo.pack_demo(tmp_path / "demo", tmp_path, {"unlabelled": 3, "train": 2, "test": 2})
    manifest = json.loads((made.folder / "manifest.json").read_text())
    for used in manifest["used"].values():
        assert all(floor.startswith("painted/") for floor in used["floors"])
    data = open_segmentation(made.measure)
    assert (len(data.train), len(data.val), len(list(made.unlabelled.glob("*")))) == (2, 2, 3)
    with pytest.raises(DovetailError, match="test scenes on painted floors, but 7 are wanted"):
        demo.pack_demo(tmp_path / "more", tmp_path, {"test": 7})


def test_the_repository_holds_the_demos_scenes() -> None:
    """They are those that were packed, small, from different sides, and free of photographs on the floors."""
    folder = Path(demo.__file__).parents[2] / "demo" / "scenes"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert fingerprint_of(folder) == manifest["fingerprint"]
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 4e6
    used = manifest["used"]
    for kind in ("assets", "floors", "lights"):
        assert not set(used["test"][kind]) & {*used["train"][kind], *used["unlabelled"][kind]}
    assert all(floor.startswith("painted/") for split in used.values() for floor in split["floors"])
    assert (folder / "LICENCES.txt").read_text() == DEMO
    data = open_segmentation(folder / "measure")
    assert data.classes == 1 + len(CLASSES)
    assert (len(data.train), len(data.val)) == (manifest["scenes"]["train"], manifest["scenes"]["test"])


def test_the_command_tells_how_many_scenes_are_ready(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tabletop", "--cache", str(cache), "--side", str(SIDE_PX)])
    command.main()
    assert capsys.readouterr().out.strip().endswith("3 test, 2 val, 3 train, 3 unlabelled")


def test_objects_are_cut_out_with_their_own_colours(tmp_path: Path) -> None:
    owners = np.zeros((160, 160), np.uint8)
    owners[20:60, 100:140], owners[0:5, 0:5] = 1, 2
    spec = {"objects": [{"label": "sofa", "asset": "sofa-01"}, {"label": "cup", "asset": "cup-01"}]}
    save_frame(tmp_path, "train", 0, spec, owners)
    crops = neighbours.cut(tmp_path, [("train", 0)])
    assert crops.labels.tolist() == [CLASSES.index("sofa")]  # the cup is too small
    assert crops.pixels.shape == (1, 3, neighbours.CROP_PX, neighbours.CROP_PX)
    assert crops.pixels[0, :, 48, 48].tolist() == [40, 40, 40]
    assert crops.pixels[0, :, 0, 0].tolist() == [0, 0, 0]
    level = 40 * neighbours.BINS // 256
    assert crops.colours[0, (level * neighbours.BINS + level) * neighbours.BINS + level] == 1


def test_neighbours_of_the_same_object_or_image_do_not_vote() -> None:
    """Crops 0 and 1 show one object, 1 and 2 stand in one image; only 3 may vote on 0 besides 2."""
    labels, objects, images = torch.tensor([0, 0, 1, 0]), torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 2])
    crops = neighbours.Crops(torch.zeros(4, 3, 1, 1), torch.zeros(4, 1), labels, objects, images)
    likeness = torch.tensor([[1.0, 0.9, 0.2, 0.5], [0.9, 1.0, 0.8, 0.1], [0.2, 0.8, 1.0, 0.3], [0.5, 0.1, 0.3, 1.0]])
    # 0 hears 3 (rightly) before 2; 1 hears 3 alone; 2 hears 3 and 0 (wrongly); 3 hears 0 and 1 against 2.
    assert neighbours.vote(likeness, crops) == pytest.approx(0.75)


def rendering_cache() -> Path:
    """Return the user's cache, or skip where it has no rendering environment or no assets."""
    home = default_cache() / "tabletop"
    if not (home / "environment" / environment.READY).is_file():
        pytest.skip(f"no rendering environment in {home}; `python -m benchmarks.scenes tabletop` makes it (525 MB)")
    if not (home / "assets" / f"{assets()[-1]['name']}.json").is_file():
        pytest.skip(f"no assets in {home}; `python -m benchmarks.scenes tabletop` makes them")
    return default_cache()


@pytest.mark.slow
def test_blender_renders_what_the_plan_says(tmp_path: Path) -> None:
    """Objects are where the plan puts them, twice the same, and a second run has nothing to do."""
    home = rendering_cache() / "tabletop"
    (tmp_path / "tabletop").mkdir()
    for name in ("environment", "assets", "floors"):
        (tmp_path / "tabletop" / name).symlink_to(home / name)
    counts: dict[Split, int] = {"test": 2}
    folder = frames.render_frames(tmp_path, [], 64, 5, counts)
    stamps = [path.stat().st_mtime_ns for path in sorted((folder / "test").iterdir())]
    assert frames.render_frames(tmp_path, [], 64, 5, counts) == folder
    assert [path.stat().st_mtime_ns for path in sorted((folder / "test").iterdir())] == stamps
    by_name = {one.name: one for one in frames.read_catalogue(home / "assets")}
    for index in range(2):
        spec = frames.read_spec(folder, "test", index)
        camera = Camera(tuple(spec["camera"]["place"]), tuple(spec["camera"]["target"]), spec["camera"]["lens_mm"])
        owners = np.asarray(Image.open(frames.frame_path(folder, "test", index).with_name(f"{index:05d}-ids.png")))
        picture = np.asarray(Image.open(frames.frame_path(folder, "test", index).with_suffix(".png")).convert("L"))
        assert picture.std() > 5
        for number, one in enumerate(spec["objects"], start=1):
            width, depth, height = (one["scale"] * length for length in by_name[one["asset"]].sides)
            box, _ = shown(camera, one["x"], one["y"], math.hypot(width, depth) / 2, height)
            rows, columns = np.nonzero(owners == number)
            assert len(rows) > 0
            assert columns.min() >= 64 * box[0] - 2
            assert columns.max() <= 64 * box[2] + 2
            assert rows.min() >= 64 * box[1] - 2
            assert rows.max() <= 64 * box[3] + 2
    kept = frames.frame_path(folder, "test", 0).with_suffix(".png").read_bytes()
    frames.frame_path(folder, "test", 0).with_suffix(".json").unlink()
    frames.render_frames(tmp_path, [], 64, 5, counts)
    with Image.open(frames.frame_path(folder, "test", 0).with_suffix(".png")) as again:
        (tmp_path / "kept.png").write_bytes(kept)
        with Image.open(tmp_path / "kept.png") as first:
            assert np.array_equal(np.asarray(again), np.asarray(first))
