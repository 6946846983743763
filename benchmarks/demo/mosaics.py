"""Mosaics of real textures with exact masks, cut from the photographs in scikit-image's wheel; nothing is downloaded.

A mosaic is a plane of a few regions, bent Voronoi cells, each filled from one photograph; its class is which one. Every
region is made grey and brought to one mean and one deviation, so neither colour nor brightness tells the class: only
the texture does. Each photograph is cut in three before anything else: training mosaics see its left half, validation
and test mosaics a quarter each. Every mosaic is a pure function of (seed, split, index).

Shapes: H x W pixels of a photograph, S the side of a mosaic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import skimage
from numpy.typing import NDArray
from PIL import Image

Split = Literal["unlabelled", "labelled", "validation", "test"]
Grey = NDArray[np.float32]

SPLIT_KEYS: dict[Split, int] = {"unlabelled": 0, "labelled": 1, "validation": 2, "test": 3}
# The share of a photograph's width that each split may see.
SPLIT_BANDS: dict[Split, tuple[float, float]] = {
    "unlabelled": (0.0, 0.5),
    "labelled": (0.0, 0.5),
    "validation": (0.5, 0.75),
    "test": (0.75, 1.0),
}


@dataclass(frozen=True)
class Texture:
    """A class: a file in scikit-image's wheel, the box (left, top, right, bottom) in pixels that is used of it, and how
    many times smaller it is made."""

    name: str
    file: str
    box: tuple[int, int, int, int]
    shrink: int = 1


# Photographs that look much the same from left to right, so that their right quarter shows the same texture.
TEXTURES = (
    Texture("brick", "brick.png", (0, 0, 512, 512)),
    Texture("grass", "grass.png", (0, 0, 512, 512)),
    Texture("gravel", "gravel.png", (0, 0, 512, 512)),
    Texture("stars", "hubble_deep_field.jpg", (0, 0, 1000, 872)),
    Texture("tissue", "ihc.png", (0, 0, 512, 512)),
    Texture("moon", "moon.png", (0, 0, 512, 512)),
    Texture("coins", "coins.png", (0, 10, 384, 293)),
    Texture("print", "page.png", (0, 35, 384, 135)),
    Texture("retina", "retina.jpg", (200, 200, 1220, 1220), shrink=2),
    Texture("handwriting", "text.png", (0, 0, 448, 172)),
)


@dataclass(frozen=True)
class MosaicPlan:
    """How mosaics are made.

    Attributes:
        side_px: Side of a mosaic.
        regions: Smallest and largest number of regions.
        bend_px: How far borders stray from straight lines.
        deviation: Standard deviation of each region's grey values, of 255; their mean is 128.
        scale: Smallest and largest factor by which a region's texture is made larger, drawn for each region.
        contrast: Smallest and largest factor of the deviation, drawn for each mosaic.
        brightness: Largest shift of a mosaic's mean grey value, of 255.
        seed: Of everything drawn.
    """

    side_px: int = 128
    regions: tuple[int, int] = (3, 6)
    bend_px: float = 6.0
    deviation: float = 46.0
    scale: tuple[float, float] = (1.0, 1.0)
    contrast: tuple[float, float] = (1.0, 1.0)
    brightness: float = 0.0
    seed: int = 0


# Near and far, in shade and in sun: few labelled images cannot show all of it, many unlabelled ones do.
_SIGHT: dict[str, tuple[float, float]] = {"scale": (0.6, 1.4), "contrast": (0.6, 1.15)}
PIECES = MosaicPlan(side_px=80, regions=(1, 1), brightness=24.0, **_SIGHT)
"""Pieces of one texture."""
MOSAICS = MosaicPlan(brightness=24.0, **_SIGHT)


def read_textures() -> list[Grey]:
    """Return the photographs as grey values in [0, 255], [H, W] each, cut to their boxes."""
    folder = Path(skimage.__file__).parent / "data"
    photographs = []
    for texture in TEXTURES:
        with Image.open(folder / texture.file) as image:
            part = image.convert("L").crop(texture.box).reduce(texture.shrink)
            photographs.append(np.asarray(part, dtype=np.float32))
    return photographs


def mosaic(
    photographs: list[Grey], plan: MosaicPlan, split: Split, index: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return one mosaic [S, S] in grey values and its mask [S, S] of classes."""
    rng = np.random.default_rng((plan.seed, SPLIT_KEYS[split], index))
    regions = voronoi(plan, rng)
    classes = rng.permutation(len(photographs))[: regions.max() + 1]
    pixels = np.empty(regions.shape, dtype=np.float32)
    for region, one in enumerate(classes):
        inside = regions == region
        pixels[inside] = fill(band(photographs[one], split), inside, plan, rng)
    pixels = 128 + (pixels - 128) * rng.uniform(*plan.contrast) + rng.uniform(-1, 1) * plan.brightness
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8), classes[regions].astype(np.uint8)


def voronoi(plan: MosaicPlan, rng: np.random.Generator) -> NDArray[np.int64]:
    """Return [S, S] the region of each pixel: the nearest of a few points, seen through a smooth distortion."""
    count = int(rng.integers(plan.regions[0], plan.regions[1] + 1))
    points = rng.uniform(0, plan.side_px, size=(count, 2))
    rows, columns = np.mgrid[: plan.side_px, : plan.side_px] + 0.5
    rows = rows + plan.bend_px * wave(rows, columns, plan, rng)
    columns = columns + plan.bend_px * wave(rows, columns, plan, rng)
    distance = (rows[..., None] - points[:, 0]) ** 2 + (columns[..., None] - points[:, 1]) ** 2
    nearest = distance.argmin(-1)
    return np.unique(nearest, return_inverse=True)[1].reshape(nearest.shape)  # a point may own no pixel


def wave(rows: NDArray[np.float64], columns: NDArray[np.float64], plan: MosaicPlan, rng: np.random.Generator) -> Grey:
    """Return a smooth random surface in [-1, 1]: three sine waves, one to three periods over the mosaic."""
    surface = np.zeros_like(rows)
    for _ in range(3):
        angle, phase, periods = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi), rng.uniform(1, 3)
        along = rows * np.sin(angle) + columns * np.cos(angle)
        surface += np.sin(2 * np.pi * periods * along / plan.side_px + phase)
    return (surface / 3).astype(np.float32)


def band(photograph: Grey, split: Split) -> Grey:
    """Return the part of a photograph that a split may see."""
    low, high = SPLIT_BANDS[split]
    width = photograph.shape[1]
    return photograph[:, round(low * width) : round(high * width)]


def fill(source: Grey, inside: NDArray[np.bool_], plan: MosaicPlan, rng: np.random.Generator) -> Grey:
    """Return the grey values of a region's pixels, cut from a random place, with the plan's mean and spread."""
    if plan.scale != (1.0, 1.0):
        source = resized(source, rng.uniform(*plan.scale))
    rows, columns = np.nonzero(inside)
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    # Bands narrower than a region go on as in a mirror.
    missing = max(height - source.shape[0], 0), max(width - source.shape[1], 0)
    source = np.pad(source, ((0, missing[0]), (0, missing[1])), mode="reflect")
    top = int(rng.integers(source.shape[0] - height + 1))
    left = int(rng.integers(source.shape[1] - width + 1))
    values = source[top + rows - rows.min(), left + columns - columns.min()]
    values = (values - values.mean()) / max(float(values.std()), 1.0)
    filled: Grey = (128 + plan.deviation * values).astype(np.float32)
    return filled


def resized(source: Grey, factor: float) -> Grey:
    """Return a photograph `factor` times as large."""
    size = round(source.shape[1] * factor), round(source.shape[0] * factor)
    return np.asarray(Image.fromarray(source).resize(size, Image.Resampling.BICUBIC), dtype=np.float32)


def write_mosaics(out: Path, plan: MosaicPlan, counts: Mapping[Split, int]) -> dict[Split, Path]:
    """Write `counts` mosaics of each split as grey PNG files below `out` and return each split's folder.

    "unlabelled" holds images alone; the others have the folders `images` and `masks` in them.
    """
    photographs = read_textures()
    for split, count in counts.items():
        images = out / split if split == "unlabelled" else out / split / "images"
        masks = out / split / "masks"
        images.mkdir(parents=True, exist_ok=True)
        if split != "unlabelled":
            masks.mkdir(parents=True, exist_ok=True)
        for index in range(count):
            pixels, mask = mosaic(photographs, plan, split, index)
            Image.fromarray(pixels).save(images / f"{index:04d}.png")
            if split != "unlabelled":
                Image.fromarray(mask).save(masks / f"{index:04d}.png")
    return {split: out / split for split in counts}
