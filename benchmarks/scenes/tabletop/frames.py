"""Rendered scenes in the cache: made in an order that is of use early, continued after an interruption, read back.

    tabletop/environment/    Blender and Infinigen
    tabletop/assets/         bottle-00.blend and .json, ...
    tabletop/floors/         wood-0.png, ...
    tabletop/frames-160px-MARK/SPLIT/00000.png, 00000-ids.png, 00000.json

A set of scenes is put together from the frames, so sets of different sizes share them.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.scenes.compose import Scene
from benchmarks.scenes.paste import Owners
from benchmarks.scenes.stock import Split
from benchmarks.scenes.tabletop.classes import CLASSES, assets, floors
from benchmarks.scenes.tabletop.environment import environment, run_script
from benchmarks.scenes.tabletop.plan import Asset, Stock, plan_scene, side_stock
from dovetail.errors import DovetailError

EDITION = 1
"""Counted up with every change that renders other images of the same plan."""
SAMPLES = 8
MIN_PIXELS = 16  # of an object that are seen, for a side of 160 px; fewer are background
PACE: Mapping[Split, int] = {"test": 2, "val": 2, "train": 2, "unlabelled": 1}
"""How fast the share of a split that is rendered grows, so that part of each can be used while the rest is rendered."""


def frames_folder(cache: Path, side_px: int, seed: int) -> Path:
    """Return where frames of a size and seed lie."""
    mark = hashlib.sha256(json.dumps([EDITION, SAMPLES, seed]).encode()).hexdigest()[:8]
    return cache / "tabletop" / f"frames-{side_px}px-{mark}"


def render_frames(
    cache: Path, photographs: Sequence[Path], side_px: int, seed: int, counts: Mapping[Split, int]
) -> Path:
    """Return the folder of frames, with at least `counts` of each split in it.

    Args:
        cache: Of everything.
        photographs: Folders of pictures that floors may show.
        side_px: Side of the frames.
        seed: Of the division and of the scenes.
        counts: Frames of each split.

    Raises:
        DovetailError: Where Blender cannot be installed or fails.
    """
    folder = frames_folder(cache, side_px, seed)
    missing = [
        (split, index)
        for split, index in in_order(counts)
        if not frame_path(folder, split, index).with_suffix(".json").is_file()
    ]
    if not missing:
        return folder
    home = cache / "tabletop"
    python = environment(home / "environment")
    make_material(python, home)
    pictures = floor_pictures(home / "floors", photographs)
    stock = Stock(CLASSES, read_catalogue(home / "assets"), tuple(sorted(pictures)))
    sides = {split: side_stock(stock, seed, split) for split in counts}
    print(f"Rendering {len(missing)} scenes into {folder}, about 1.5 seconds of one core each", flush=True)
    specs = [plan_scene(sides[split], seed, split, index).to_json() for split, index in missing]
    common = {
        "out": str(folder),
        "assets": str(home / "assets"),
        "floors": {name: str(path) for name, path in pictures.items()},
        "side_px": side_px,
        "samples": SAMPLES,
    }
    parts = workers()
    run_script(python, "trace", [{**common, "scenes": specs[part::parts]} for part in range(min(parts, len(specs)))])
    return folder


def in_order(counts: Mapping[Split, int]) -> list[tuple[Split, int]]:
    """Return all scenes in the order in which they are rendered, each split's from its first."""
    every = [(split, index) for split, count in counts.items() for index in range(count)]
    return sorted(every, key=lambda one: (one[1] / counts[one[0]] / PACE[one[0]], one))


def workers() -> int:
    """Return how many processes render: one for each core that this one may use (`taskset` can allow fewer)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_material(python: Path, home: Path) -> None:
    """Make the assets and floors that are missing."""
    for kind, script, wanted in (("assets", "spawn", assets()), ("floors", "floors", floors())):
        folder = home / kind
        folder.mkdir(parents=True, exist_ok=True)
        made = {path.stem for path in folder.iterdir() if path.suffix in (".json", ".png", ".failed")}
        todo = [one for one in wanted if one["name"] not in made]
        if todo:
            print(f"Making {len(todo)} {kind} in {folder}, a few seconds each", flush=True)
            parts = workers()
            tasks: list[dict[str, Any]] = [{"out": str(folder), kind: todo[part::parts]} for part in range(parts)]
            run_script(python, script, tasks)


def floor_pictures(painted: Path, photographs: Sequence[Path]) -> dict[str, Path]:
    """Return the pictures of floors by name: the painted ones and the photographs."""
    found = {f"painted/{path.stem}": path for path in painted.glob("*.png")}
    for folder in photographs:
        found |= {f"photograph/{folder.name}/{path.stem}": path for path in folder.glob("*.jpg")}
    return found


def read_catalogue(folder: Path) -> tuple[Asset, ...]:
    """Return the assets that could be made, in the order of their names.

    Raises:
        DovetailError: Where a class has none.
    """
    found = []
    for one in sorted(str(asset["name"]) for asset in assets()):
        facts = json.loads((folder / f"{one}.json").read_text(encoding="utf-8"))
        if "failed" not in facts:
            low, high = tuple(facts["low"]), tuple(facts["high"])
            found.append(Asset(one, one.rpartition("-")[0], low, high))
    lacking = sorted(set(CLASSES) - {one.label for one in found})
    if lacking:
        raise DovetailError(f"Infinigen created no {', '.join(lacking)}; delete {folder} to create the assets again.")
    return tuple(found)


def frame_path(folder: Path, split: Split, index: int) -> Path:
    """Return a frame's files without their endings."""
    return folder / split / f"{index:05d}"


def read_frame(folder: Path, split: Split, index: int) -> Scene:
    """Return a frame as a scene; objects of which nearly nothing is seen are background."""
    path = frame_path(folder, split, index)
    with Image.open(path.with_suffix(".png")) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    owners = read_owners(folder, split, index)
    objects = read_spec(folder, split, index)["objects"]
    seen = seen_numbers(owners, len(objects))
    table = np.zeros(len(objects) + 1, dtype=np.uint8)
    table[seen] = np.arange(1, len(seen) + 1)
    return Scene(pixels, table[owners], [CLASSES.index(objects[number - 1]["label"]) for number in seen])


def read_owners(folder: Path, split: Split, index: int) -> Owners:
    """Return [S, S] the number of each pixel's object in the frame's plan; 0 for none."""
    path = frame_path(folder, split, index)
    with Image.open(path.with_name(f"{path.name}-ids.png")) as picture:
        return np.asarray(picture)


def seen_numbers(owners: Owners, count: int) -> list[int]:
    """Return the numbers, from 1, of the objects of which enough is seen."""
    counts = np.bincount(owners.ravel(), minlength=count + 1)
    least = MIN_PIXELS * (owners.shape[0] / 160) ** 2
    return [number for number in range(1, count + 1) if counts[number] >= least]


def seen_objects(folder: Path, split: Split, index: int) -> list[dict[str, Any]]:
    """Return what the plan says of the objects of `read_frame`, in the same order."""
    objects = read_spec(folder, split, index)["objects"]
    return [objects[number - 1] for number in seen_numbers(read_owners(folder, split, index), len(objects))]


def used_in(folder: Path, split: Split, indices: Iterable[int]) -> dict[str, list[str]]:
    """Return which assets, floors and HDR images some frames show."""
    used: dict[str, set[str]] = {"assets": set(), "floors": set(), "lights": set()}
    for index in indices:
        spec = read_spec(folder, split, index)
        used["assets"] |= {one["asset"] for one in spec["objects"]}
        used["floors"].add(spec["floor"]["image"])
        used["lights"].add(spec["light"]["image"])
    return {kind: sorted(names) for kind, names in used.items()}


def read_spec(folder: Path, split: Split, index: int) -> dict[str, Any]:
    """Return the plan that a frame was rendered from, as `plan.SceneSpec.to_json` gives it."""
    spec: dict[str, Any] = json.loads(frame_path(folder, split, index).with_suffix(".json").read_text(encoding="utf-8"))
    return spec


def frames_ready(folder: Path) -> dict[Split, int]:
    """Return how many frames of each split are there without a gap from the first."""
    ready: dict[Split, int] = {}
    for split in PACE:
        count = 0
        while frame_path(folder, split, count).with_suffix(".json").is_file():
            count += 1
        ready[split] = count
    return ready
