"""The demo's scenes: a few megabytes of `tabletop` that anybody may hand on, since their floors show no photographs.

images/{unlabelled,train,test}/00000.jpg    masks/ and instances/{train,test}/00000.png
measure/instances_{train,val}.json          COCO; "val" are the test scenes
manifest.json, LICENCES.txt
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.scenes.compose import Scene
from benchmarks.scenes.licences import DEMO
from benchmarks.scenes.stock import Split
from benchmarks.scenes.tabletop.classes import CLASSES
from benchmarks.scenes.tabletop.environment import BLENDER, INFINIGEN
from benchmarks.scenes.tabletop.frames import frames_folder, frames_ready, read_frame, read_spec, used_in
from benchmarks.scenes.write import SceneSet, made_once, write_scenes
from dovetail.errors import DovetailError

COUNTS: Mapping[Split, int] = {"unlabelled": 200, "train": 24, "test": 40}
SIDE_PX = 160
SEED = 0


def pack_demo(folder: Path, cache: Path, counts: Mapping[Split, int] = COUNTS) -> SceneSet:
    """Write the demo's scenes into `folder`, the first of each split that show painted floors, and return the set.

    Raises:
        DovetailError: Where the cache has too few frames.
    """
    frames = frames_folder(cache, SIDE_PX, SEED)
    chosen = {split: painted(frames, split, count) for split, count in counts.items()}

    def make(fresh: Path) -> dict[str, Any]:
        makers: dict[Split, Callable[[int], Scene]] = {
            split: partial(nth_frame, frames, split, indices) for split, indices in chosen.items()
        }
        facts = write_scenes(fresh, CLASSES, makers, counts)
        used = {split: used_in(frames, split, indices) for split, indices in chosen.items()}
        return facts | {"renderer": [BLENDER, INFINIGEN], "frames": chosen, "used": used}

    return made_once(folder, make, {"side_px": SIDE_PX, "seed": SEED, "counts": dict(counts)}, [], DEMO)


def painted(frames: Path, split: Split, count: int) -> list[int]:
    """Return the first frames of a split whose floor is a painted one."""
    ready = range(frames_ready(frames)[split])
    found = [index for index in ready if read_spec(frames, split, index)["floor"]["image"].startswith("painted/")]
    if len(found) < count:
        raise DovetailError(
            f"The cache has {len(found)} {split} scenes on painted floors, but {count} are wanted; render more with "
            f"`python -m benchmarks.scenes tabletop --side {SIDE_PX}`."
        )
    return found[:count]


def nth_frame(frames: Path, split: Split, indices: list[int], index: int) -> Scene:
    """Return the frame at a place of the list."""
    return read_frame(frames, split, indices[index])
