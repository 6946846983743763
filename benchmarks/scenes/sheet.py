"""Contact sheets: scenes beside their masks, to see with one's own eyes what a set is."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
from PIL import Image

COLUMNS, ROWS = 8, 6
GAP_PX = 4


def draw_sheet(folder: Path, out: Path, split: str = "test") -> Path:
    """Draw scenes of a split, each with its mask beside it where there is one, and return the file."""
    images = sorted((folder / "images" / split).glob("*"))
    if not images:  # a set for classification: some of each class
        classes = sorted(path for path in (folder / "measure" / "val").iterdir() if path.is_dir())
        images = [path for one in classes for path in sorted(one.glob("*"))[: COLUMNS * ROWS // len(classes)]]
    tiles = [tile(path, folder) for path in images[: COLUMNS * ROWS]]
    width, height = tiles[0].size
    columns = COLUMNS if width == height else COLUMNS // 2
    rows = -(-len(tiles) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP_PX), rows * (height + GAP_PX)), "white")
    for place, one in enumerate(tiles):
        sheet.paste(one, (place % columns * (width + GAP_PX), place // columns * (height + GAP_PX)))
    sheet.save(out)
    return out


def tile(path: Path, folder: Path) -> Image.Image:
    """Return an image, its mask to the right of it where there is one."""
    with Image.open(path) as picture:
        image = picture.convert("RGB")
    mask = folder / "masks" / path.parent.name / f"{path.stem}.png"
    if not mask.is_file():
        return image
    with Image.open(mask) as picture:
        labels = np.asarray(picture)
    both = Image.new("RGB", (2 * image.width, image.height))
    both.paste(image, (0, 0))
    both.paste(Image.fromarray(colours()[labels]), (image.width, 0))
    return both


def colours() -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """Return a colour for each label, [256, 3]: black for background, then hues far apart."""
    table = [(0.0, 0.0, 0.0)]
    table += [colorsys.hsv_to_rgb(number * 0.618 % 1, 0.55 + 0.45 * (number % 2), 1.0) for number in range(1, 256)]
    return np.rint(255 * np.array(table)).astype(np.uint8)
