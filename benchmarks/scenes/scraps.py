"""Scraps of photographed textures that lie on another texture: objects with masks and boxes, without any download.

The ten textures of `benchmarks.demo.mosaics` are both objects and grounds, so an object is what has a closed outline,
and its class is its texture. Each part of the photographs belongs to one split, as there. A scene is a pure function of
(seed, split, index). Nothing is unlabelled: pre-training takes the pieces of the set `mosaics`.

Shapes: S the side of a scene in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.demo import mosaics
from benchmarks.scenes.compose import Scene
from benchmarks.scenes.stock import Split
from benchmarks.scenes.write import write_scenes

SCENE_SIDES = 2.0  # of a training crop, as mosaics
OBJECTS = (1, 3)
DIAMETER = (0.35, 0.6)  # of an object, in sides of the scene
WIDER = (0.7, 1.4)  # than high
SMALLEST = 0.02  # share of the scene that is seen of an object
KEY = 1000  # another one than of mosaics, for the same splits
PARTS: Mapping[Split, mosaics.Split] = {"train": "labelled", "val": "validation", "test": "test"}


def make_scraps(folder: Path, side_px: int, counts: Mapping[Split, int], seed: int) -> dict[str, Any]:
    """Write the set into `folder` and return what is in it.

    Args:
        folder: Of the set.
        side_px: Of training crops; scenes are twice as large.
        counts: Scenes of each split; unlabelled ones are not made.
        seed: Of everything drawn.
    """
    photographs = mosaics.read_textures()
    plan = replace(mosaics.MOSAICS, side_px=round(SCENE_SIDES * side_px), seed=seed)
    labelled = {split: count for split, count in counts.items() if split in PARTS}
    makers: dict[Split, Callable[[int], Scene]] = {
        split: partial(scene_of_scraps, photographs, plan, PARTS[split]) for split in labelled
    }
    names = [one.name for one in mosaics.TEXTURES]
    return write_scenes(folder, names, makers, labelled) | {"textures": asdict(plan)}


def scene_of_scraps(
    photographs: list[mosaics.Grey], plan: mosaics.MosaicPlan, split: mosaics.Split, index: int
) -> Scene:
    """Return a scene: scraps of different textures on one more, later ones over earlier ones."""
    rng = np.random.default_rng((plan.seed, KEY + mosaics.SPLIT_KEYS[split], index))
    side, wanted = plan.side_px, int(rng.integers(OBJECTS[0], OBJECTS[1] + 1))
    classes = rng.permutation(len(photographs))[: wanted + 1]
    owners = np.zeros((side, side), dtype=np.uint8)
    for number in range(1, wanted + 1):
        owners[outline(side, rng)] = number
    for number in range(1, wanted + 1):
        if (owners == number).sum() < SMALLEST * side**2:  # hidden, or hardly within the scene
            owners[owners == number] = 0
    seen = [int(number) for number in np.unique(owners) if number]
    pixels = np.empty((side, side), dtype=np.float32)
    for number in {0, *seen}:
        inside = owners == number
        source = mosaics.band(photographs[classes[number]], split)
        pixels[inside] = mosaics.fill(source, inside, plan, rng)
    pixels = 128 + (pixels - 128) * rng.uniform(*plan.contrast) + rng.uniform(-1, 1) * plan.brightness
    grey = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
    renumbered = np.zeros(wanted + 1, dtype=np.uint8)
    renumbered[seen] = np.arange(1, len(seen) + 1)
    return Scene(np.repeat(grey[..., None], 3, axis=2), renumbered[owners], [int(classes[one]) for one in seen])


def outline(side_px: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return [S, S] the inside of an ellipse with a wavy border, somewhere in the scene, perhaps partly beyond it."""
    rows, columns = np.mgrid[:side_px, :side_px] + 0.5
    down, right = (grid - rng.uniform(0.15, 0.85) * side_px for grid in (rows, columns))
    angle, wider = rng.uniform(0, np.pi), rng.uniform(*WIDER) ** 0.5
    along = (right * np.cos(angle) + down * np.sin(angle)) / wider
    across = (down * np.cos(angle) - right * np.sin(angle)) * wider
    turn = np.arctan2(across, along)
    border = np.ones_like(turn)
    for waves in range(2, 6):
        border += rng.uniform(0, 0.25 / waves) * np.sin(waves * turn + rng.uniform(0, 2 * np.pi))
    inside: NDArray[np.bool_] = np.hypot(along, across) < border * rng.uniform(*DIAMETER) * side_px / 2
    return inside
