"""A few test images with the predictions of a fine-tuned model, for the result pages.

examples/00.png, 01.png and so on, and examples/examples.json: a list of {file, caption}
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor
from torchvision.utils import draw_bounding_boxes

from dovetail.downstream.segment.colours import coloured, over, picture_of
from dovetail.errors import printable
from dovetail.files.durable import write_whole

EXAMPLES, LISTED = "examples", "examples.json"
SIDE_PX, GAP_PX = 320, 6
TRUE_COLOUR, FOUND_COLOUR = (0, 158, 115), (213, 94, 0)
SHOWN_SCORE = 0.5  # lowest score of detections in pictures


@dataclass(frozen=True)
class Example:
    """An image with its caption."""

    picture: Image.Image
    caption: str


def segmented(image: Tensor, truth: Tensor, found: Tensor, *, caption: str) -> Example:
    """Draw an image [C, H, W] in 0 to 255 side by side with overlays of its true and predicted masks [H, W]."""
    tiles = [picture_of(image), *(over(image, coloured(mask)) for mask in (truth, found))]
    return Example(side_by_side(tiles), caption)


def boxed(image: Tensor, truth: Tensor, found: Tensor, *, caption: str) -> Example:
    """Draw an image [3, H, W] in 0 to 255 with its true boxes [N, 4], side by side with the predicted boxes."""
    tiles = [with_boxes(image, boxes, colour) for boxes, colour in ((truth, TRUE_COLOUR), (found, FOUND_COLOUR))]
    return Example(side_by_side(tiles), caption)


def with_boxes(
    image: Tensor, boxes: Tensor, colour: tuple[int, int, int], names: Sequence[str] | None = None
) -> Image.Image:
    """Draw boxes [N, 4] (left, top, right, bottom), with a name for each, on an image [3, H, W] in 0 to 255."""
    drawn = image.round().byte() if image.is_floating_point() else image
    if len(boxes):
        labels = None if names is None else [printable(name) for name in names]
        drawn = draw_bounding_boxes(drawn, boxes, labels, colors=[colour] * len(boxes), width=2)
    return Image.fromarray(drawn.permute(1, 2, 0).contiguous().numpy())


def side_by_side(tiles: Sequence[Image.Image]) -> Image.Image:
    """Draw images of the same size in a row, each at most `SIDE_PX` wide and high."""
    scale = min(SIDE_PX / max(tiles[0].size), 1.0)
    width, height = (max(round(side * scale), 1) for side in tiles[0].size)
    row = Image.new("RGB", (len(tiles) * (width + GAP_PX) - GAP_PX, height), "white")
    for place, tile in enumerate(tiles):
        row.paste(tile.convert("RGB").resize((width, height)), (place * (width + GAP_PX), 0))
    return row


def write_examples(out: Path, examples: Iterable[Example]) -> None:
    """Write images to `out` and replace existing ones."""
    folder = out / EXAMPLES
    shutil.rmtree(folder, ignore_errors=True)
    listed = []
    for number, example in enumerate(examples):
        folder.mkdir(exist_ok=True)
        name = f"{number:02d}.png"
        example.picture.save(folder / name)
        listed.append({"file": name, "caption": example.caption})
    if listed:
        write_whole(folder / LISTED, json.dumps(listed, indent=2) + "\n")
