"""The sets by name, built where they are missing: `build("stamps", cache)` returns one that is ready."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.scenes import backgrounds, corridors, cutouts, furniture, scraps, solar, textures
from benchmarks.scenes.compose import Backdrop, Scene, ScenePlan, indoors, outdoors, scene
from benchmarks.scenes.fetch import Fetched
from benchmarks.scenes.licences import NOTES
from benchmarks.scenes.stock import Split, Stock, side_of
from benchmarks.scenes.tabletop import frames
from benchmarks.scenes.tabletop.classes import CLASSES as TABLETOP_CLASSES
from benchmarks.scenes.tabletop.environment import BLENDER, INFINIGEN
from benchmarks.scenes.write import SceneSet, made_once, write_scenes
from dovetail.errors import unknown_name

EDITION = 1
"""Counted up with every change that makes other images of the same plan."""

COUNTS: Mapping[Split, int] = {"unlabelled": 4000, "train": 400, "val": 150, "test": 400}
TABLETOP: Mapping[Split, int] = {"unlabelled": 2000, "train": 400, "val": 100, "test": 300}
"""The most scenes of `tabletop`: each takes one to two seconds of a core to render."""
FRAMES = 1100  # more frames of corridors than these would be of places seen before


@dataclass(frozen=True)
class SetPlan:
    """What to make of a set.

    Attributes:
        side_px: Side of its scenes, or of solar's images.
        counts: Scenes of each split; not of solar.
        seed: Of everything drawn, the division of objects and backgrounds too.
        close: Whether pasted objects are fewer and larger, so that each has more pixels; `stamps` and `rooms` only.
    """

    side_px: int = 128
    counts: Mapping[Split, int] = field(default_factory=lambda: dict(COUNTS))
    seed: int = 0
    close: bool = False


def build(name: str, cache: Path, plan: SetPlan | None = None) -> SceneSet:
    """Return a set, made and its packages fetched where the cache lacks them.

    Raises:
        DovetailError: For an unknown name, and where packages cannot be had.
    """
    if name not in BUILDERS:
        raise unknown_name("set of scenes", name, BUILDERS)
    return BUILDERS[name](cache, plan or SetPlan())


def build_stamps(cache: Path, plan: SetPlan) -> SceneSet:
    """Return photographic cut-outs on photographs."""
    stamps, photographs = cutouts.fetch_stamps(cache), backgrounds.fetch_photographs(cache)

    def stock() -> Stock:
        pictures = backgrounds.read_photographs([one.folder for one in photographs])
        return Stock(cutouts.CLASSES, cutouts.read_stamps(stamps.folder), pictures)

    scenes = ScenePlan(side_px=plan.side_px, seed=plan.seed)
    if plan.close:
        scenes = replace(scenes, objects=(2, 4), others=(0, 1), long_side=(0.45, 1.0))
    return pasted_set("stamps", cache, plan, scenes, stock, outdoors, [stamps, *photographs])


def build_rooms(cache: Path, plan: SetPlan) -> SceneSet:
    """Return rendered objects that stand in rooms."""
    objects, photographs = furniture.fetch_furniture(cache), backgrounds.fetch_photographs(cache)

    def stock() -> Stock:
        pictures = backgrounds.read_photographs([one.folder for one in photographs])
        return Stock(furniture.CLASSES, furniture.read_furniture(objects.folder), pictures)

    scenes = ScenePlan(
        side_px=plan.side_px,
        objects=(2, 6),
        others=(0, 3),
        long_side=(0.22, 0.65),
        turn=3.0,
        upright=True,
        seed=plan.seed,
    )
    if plan.close:
        scenes = replace(scenes, objects=(2, 4), others=(0, 1), long_side=(0.4, 0.9))
    return pasted_set("rooms", cache, plan, scenes, stock, indoors, [objects, *photographs])


def pasted_set(
    name: str,
    cache: Path,
    plan: SetPlan,
    scenes: ScenePlan,
    stock: Callable[[], Stock],
    backdrop: Backdrop,
    packages: list[Fetched],
) -> SceneSet:
    """Return a set of pasted scenes; the stock is read only where it has to be made."""

    def make(folder: Path) -> dict[str, Any]:
        material = stock()
        sides = {split: material.of(side_of(split), plan.seed) for split in plan.counts}
        makers: dict[Split, Callable[[int], Scene]] = {
            split: partial(scene, sides[split], scenes, backdrop, split) for split in plan.counts
        }
        facts = write_scenes(folder, material.classes, makers, plan.counts)
        used = {
            split: {
                "cutouts": sorted(one.name for one in side.cutouts),
                "photographs": [one.name for one in side.photographs],
            }
            for split, side in sides.items()
        }
        return facts | {"used": used}

    return made_once(set_folder(name, cache, plan), make, asdict(plan), packages, NOTES[name])


def build_corridors(cache: Path, plan: SetPlan) -> SceneSet:
    """Return frames of walks through game levels."""
    package = corridors.fetch_engine(cache)
    plan = replace(plan, counts={split: min(count, FRAMES) for split, count in plan.counts.items()})

    def make(folder: Path) -> dict[str, Any]:
        return corridors.make_corridors(folder, package.folder, plan.side_px, plan.counts, plan.seed)

    return made_once(set_folder("corridors", cache, plan), make, asdict(plan), [package], NOTES["corridors"])


def build_solar(cache: Path, plan: SetPlan) -> SceneSet:
    """Return photographs of solar cells, sound and defective."""
    package, own = solar.fetch_cells(cache), replace(plan, counts={})

    def make(folder: Path) -> dict[str, Any]:
        return solar.make_solar(folder, package.folder, own.side_px, own.seed)

    return made_once(set_folder("solar", cache, own), make, asdict(own), [package], NOTES["solar"])


def build_mosaics(cache: Path, plan: SetPlan) -> SceneSet:
    """Return mosaics of photographed textures."""
    own = replace(plan, close=False)

    def make(folder: Path) -> dict[str, Any]:
        return textures.make_mosaics(folder, own.side_px, own.counts, own.seed)

    return made_once(set_folder("mosaics", cache, own), make, asdict(own), [], NOTES["mosaics"])


def build_scraps(cache: Path, plan: SetPlan) -> SceneSet:
    """Return scraps of photographed textures on other textures."""
    counts: dict[Split, int] = {split: count for split, count in plan.counts.items() if split in scraps.PARTS}
    own = replace(plan, close=False, counts=counts)

    def make(folder: Path) -> dict[str, Any]:
        return scraps.make_scraps(folder, own.side_px, own.counts, own.seed)

    return made_once(set_folder("scraps", cache, own), make, asdict(own), [], NOTES["scraps"])


def build_tabletop(cache: Path, plan: SetPlan) -> SceneSet:
    """Return rendered scenes of procedural objects on a floor."""
    photographs = backgrounds.fetch_photographs(cache)
    own = replace(
        plan, close=False, counts={split: min(count, TABLETOP[split]) for split, count in plan.counts.items()}
    )

    def make(folder: Path) -> dict[str, Any]:
        rendered = frames.render_frames(cache, [one.folder for one in photographs], own.side_px, own.seed, own.counts)
        makers: dict[Split, Callable[[int], Scene]] = {
            split: partial(frames.read_frame, rendered, split) for split in own.counts
        }
        facts = write_scenes(folder, TABLETOP_CLASSES, makers, own.counts)
        used = {split: frames.used_in(rendered, split, range(count)) for split, count in own.counts.items()}
        return facts | {"renderer": [BLENDER, INFINIGEN], "used": used}

    return made_once(set_folder("tabletop", cache, own), make, asdict(own), photographs, NOTES["tabletop"])


def set_folder(name: str, cache: Path, plan: SetPlan) -> Path:
    """Return where a set lies: plans that differ make different folders."""
    mark = hashlib.sha256(json.dumps([EDITION, asdict(plan)], sort_keys=True).encode()).hexdigest()[:8]
    return cache / "sets" / f"{name}-{plan.side_px}px-{mark}"


BUILDERS: Mapping[str, Callable[[Path, SetPlan], SceneSet]] = {
    "stamps": build_stamps,
    "rooms": build_rooms,
    "corridors": build_corridors,
    "solar": build_solar,
    "mosaics": build_mosaics,
    "scraps": build_scraps,
    "tabletop": build_tabletop,
}
