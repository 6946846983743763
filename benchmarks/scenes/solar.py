"""elpv-dataset: 2,624 real photographs of solar cells in electroluminescence, sound or defective (CC-BY-NC-SA-4.0).

Each cell has a probability of a defect: 0, 1/3, 2/3 or 1. Here cells from 2/3 on count as defective. The files follow
the modules that the cells were cut from, but nothing says where one ends; modules have 60 or 72 cells. So whole blocks
of 60 in order go to one split, which keeps most, not all, cells of a module together.

    choose/{train,val}/CLASS/*.png      measure/{train,val}/CLASS/*.png, "val" being the test cells
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.scenes.fetch import Fetched, Package, fetch
from benchmarks.scenes.stock import Side, divided

CELLS = Package(
    "elpv-dataset", "python", "1.0.0.post1", "85e31c1126ee9b48e62d3a0232c58f58b2d189b0814a45c13642fa0415af4a4c"
)
CLASSES = ("sound", "defective")
DEFECTIVE_FROM = 0.5
BLOCK = 60
PLACES: dict[Side, tuple[str, ...]] = {
    "train": ("choose/train", "measure/train"),
    "val": ("choose/val",),
    "test": ("measure/val",),
}


def fetch_cells(cache: Path) -> Fetched:
    """Return the photographs and labels in the cache, fetched where they are missing."""

    def keep(unpacked: Path, kept: Path) -> None:
        data = unpacked / "elpv_dataset" / "data"
        shutil.copytree(data / "images", kept / "images")
        shutil.copy(data / "labels.csv", kept / "labels.csv")
        licence = next(iter(unpacked.glob("*.dist-info/licenses/LICENSE.md")))
        shutil.copy(licence, kept / "copyright")

    return fetch(CELLS, cache, keep, edition="1")


def read_labels(path: Path) -> list[tuple[str, float, str]]:
    """Return each cell's file, probability of a defect, and kind ("mono" or "poly")."""
    rows = (line.split() for line in path.read_text(encoding="utf-8").splitlines())
    return [(row[0], float(row[1]), row[2]) for row in rows if row]


def blocks_of(kinds: list[str]) -> list[str]:
    """Return the name of each cell's block: up to 60 cells in order, of one kind."""
    names, run, before = [], 0, ""
    for place, kind in enumerate(kinds):
        if kind != before:
            run, before = place, kind
        names.append(f"{run:04d}-{(place - run) // BLOCK:02d}")
    return names


def make_solar(folder: Path, package: Path, side_px: int, seed: int) -> dict[str, Any]:
    """Write the set into `folder` and return what is in it."""
    cells = read_labels(package / "labels.csv")
    blocks = blocks_of([kind for _, _, kind in cells])
    sides: dict[str, Side] = {}
    for kind in ("mono", "poly"):  # each split gets its share of both
        own = [block for block, cell in zip(blocks, cells, strict=True) if cell[2] == kind]
        sides |= divided(own, (seed, 2, len(kind), int(kind == "poly")))
    counts: Counter[tuple[str, str]] = Counter()
    for block, (file, probability, _) in zip(blocks, cells, strict=True):
        name = CLASSES[probability > DEFECTIVE_FROM]
        counts[sides[block], name] += 1
        with Image.open(package / file) as picture:
            small = picture.convert("L").resize((side_px, side_px), Image.Resampling.LANCZOS, reducing_gap=3.0)
        for place in PLACES[sides[block]]:
            target = folder / place / name / Path(file).name
            target.parent.mkdir(parents=True, exist_ok=True)
            small.save(target)
    return {"classes": list(CLASSES), "cells": {f"{side} {name}": count for (side, name), count in counts.items()}}
