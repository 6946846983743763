"""Mosaics of ten photographed textures, as the demo shows them: see `benchmarks.demo.mosaics`. Nothing is downloaded.

images/unlabelled/0000.png                pieces of one texture each, from the photographs' left halves
choose/{images,masks}/{train,val}/        to choose settings with: left halves, and the quarters beside them
measure/{images,masks}/{train,val}/       to measure with: left halves, and the right quarters ("val")
images/test, masks/test                   the same right quarters once more, to look at
pieces/{train,val}/CLASS/                 pieces of one texture with its name, from left halves and right quarters
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.demo import mosaics
from benchmarks.scenes.stock import Split

PIECES = "pieces"
PIECE_SIDES, MOSAIC_SIDES = 1.25, 2.0  # of a training crop
PLACES: Mapping[mosaics.Split, tuple[str, ...]] = {
    "labelled": ("choose/{kind}/train", "measure/{kind}/train"),
    "validation": ("choose/{kind}/val",),
    "test": ("measure/{kind}/val", "{kind}/test"),
}


def make_mosaics(folder: Path, side_px: int, counts: Mapping[Split, int], seed: int) -> dict[str, Any]:
    """Write the set into `folder` and return what is in it.

    Args:
        folder: Of the set.
        side_px: Of training crops; mosaics are twice as large.
        counts: Pictures of each split.
        seed: Of everything drawn.
    """
    pieces = pieces_plan(side_px, seed)
    whole = replace(mosaics.MOSAICS, side_px=round(MOSAIC_SIDES * side_px), seed=seed)
    made = folder / "made"
    alone = mosaics.write_mosaics(made, pieces, {"unlabelled": counts["unlabelled"]})
    numbers: dict[mosaics.Split, int] = {
        "labelled": counts["train"],
        "validation": counts["val"],
        "test": counts["test"],
    }
    labelled = mosaics.write_mosaics(made, whole, numbers)
    for split, places in PLACES.items():
        for kind in ("images", "masks"):
            for place in places:
                shutil.copytree(labelled[split] / kind, folder / place.format(kind=kind))
    shutil.move(alone["unlabelled"], folder / "images" / "unlabelled")
    shutil.rmtree(made)
    write_pieces(folder / PIECES, pieces, (("train", "labelled", counts["train"]), ("val", "test", counts["test"])))
    return {
        "classes": [one.name for one in mosaics.TEXTURES],
        "scenes": dict(counts),
        "pieces": asdict(pieces),
        "mosaics": asdict(whole),
    }


def pieces_plan(side_px: int, seed: int) -> mosaics.MosaicPlan:
    """Return how pieces of one texture are drawn for training crops of a side."""
    return replace(mosaics.PIECES, side_px=round(PIECE_SIDES * side_px), seed=seed)


def write_pieces(folder: Path, plan: mosaics.MosaicPlan, parts: Sequence[tuple[str, mosaics.Split, int]]) -> None:
    """Write pieces below `folder`/PART, in folders named after their textures; `parts` are (part, split, how many)."""
    photographs = mosaics.read_textures()
    for part, split, count in parts:
        for index in range(count):
            pixels, mask = mosaics.mosaic(photographs, plan, split, index)
            place = folder / part / mosaics.TEXTURES[int(mask[0, 0])].name
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place / f"{index:04d}.png")
