"""A sheet for loggers with sample views and their boxes in the source images. The page draws these itself."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from PIL import Image

from dovetail.report.pixels import Rgb
from dovetail.report.sample import BOX_COLOURS, Box, Example, Picture
from dovetail.report.sheets import Sheet, put_label, short

MOST_COLUMNS = 13


def views_sheet(examples: Sequence[Example]) -> Sheet:
    """Return a sheet with a row for each image and its views, and one for its query patches if it has any."""
    rows: list[tuple[str, Picture, tuple[Picture, ...]]] = []
    for example in examples:
        rows.append((example.name, example.source, example.views))
        if example.query_source is not None:
            rows.append((example.name, example.query_source, example.queries))
    columns = min(MOST_COLUMNS, 1 + max(len(pictures) for _, _, pictures in rows))
    sheet = Sheet(len(rows), columns, title="Views and their positions in the source images")
    for row, (name, source, pictures) in enumerate(rows):
        draw_boxes(sheet.show(row, 0, pixels_of(source), title=short(name), smooth=True), source)
        for column, picture in enumerate(pictures[: columns - 1], start=1):
            axes = sheet.show(row, column, pixels_of(picture), title=picture.alt.replace(", ", "\n", 1), smooth=True)
            draw_boxes(axes, picture)
    return sheet


def pixels_of(picture: Picture) -> Rgb:
    """Decode the pixels [H, W, 3] of a picture from its data URI."""
    with Image.open(io.BytesIO(base64.b64decode(picture.uri.split(",", 1)[1]))) as image:
        return np.asarray(image.convert("RGB"))


def draw_boxes(axes: Axes, picture: Picture) -> None:
    """Draw the numbered boxes of a picture."""
    height, width = pixels_of(picture).shape[:2]
    for box in picture.boxes:
        left, top = box.left * width - 0.5, box.top * height - 0.5
        axes.add_patch(outline(box, (left, top), (box.width * width, box.height * height)))
        if box.number:
            put_label(axes, left, top, f"{'q' if box.kind == 'query' else ''}{box.number}", corner=True)


def outline(box: Box, corner: tuple[float, float], size: tuple[float, float]) -> Rectangle:
    """Return the outline of a box: dashed for local views, dotted for queries, hatched for the overlap."""
    colour = BOX_COLOURS[(box.number - 1) % len(BOX_COLOURS)] if box.kind in ("global", "local") else "white"
    dashes = {"global": "-", "local": "--", "query": ":", "overlap": ":"}[box.kind]
    hatch = "//" if box.kind == "overlap" else None
    patch = Rectangle(corner, *size, fill=False, edgecolor=colour, linestyle=dashes, linewidth=1.5, hatch=hatch)
    if box.kind != "overlap":
        patch.set_path_effects([withStroke(linewidth=3, foreground="black", alpha=0.55)])
    return patch
