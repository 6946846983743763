"""Class colours for masks and overlays."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dovetail.errors import ModelError, printable

MOST_COLOURS = 256
LEGEND_PX = 16  # height of a letter
MOST_LETTERS = 40


def palette(classes: int) -> list[int]:
    """Return the 256 colours of VOC: the bits of the class are distributed to red, green and blue."""
    if classes > MOST_COLOURS:
        raise ModelError(
            f"The model has {classes} classes, but a palette PNG supports 256; load the model and use its logits."
        )
    colours = []
    for index in range(256):
        value, colour = index, [0, 0, 0]
        for bit in range(7, -1, -1):
            for channel in range(3):
                colour[channel] |= ((value >> channel) & 1) << bit
            value >>= 3
        colours += colour
    return colours


def coloured(classes: Tensor) -> Image.Image:
    """Convert classes [H, W] to a palette image."""
    mask = Image.fromarray(classes.numpy().astype(np.uint8))
    mask.putpalette(palette(0))
    return mask


def legend(names: Mapping[int, str]) -> Image.Image:
    """Draw the colours and names of classes, as a column of rows."""
    font = ImageFont.load_default(LEGEND_PX)
    colours, row = palette(0), round(1.6 * LEGEND_PX)
    lines = {label: printable(name)[:MOST_LETTERS] for label, name in names.items()}
    width = max((round(font.getlength(line)) for line in lines.values()), default=0)
    picture = Image.new("RGB", (width + 3 * row, row * max(len(lines), 1) + row // 2), "white")
    draw = ImageDraw.Draw(picture)
    for place, (label, line) in enumerate(lines.items()):
        top = row // 2 + place * row
        colour = tuple(colours[3 * label : 3 * label + 3])
        draw.rectangle((row // 2, top, round(1.5 * row), top + LEGEND_PX), fill=colour, outline="black")
        draw.text((2 * row, top + LEGEND_PX // 2), line, fill="black", font=font, anchor="lm")
    return picture


def over(image: Tensor, mask: Image.Image) -> Image.Image:
    """Blend an image [C, H, W] in 0 to 255 with a palette image."""
    return Image.blend(picture_of(image), mask.convert("RGB"), 0.5)


def picture_of(image: Tensor) -> Image.Image:
    """Return an image [C, H, W] in 0 to 255 as RGB: the first channel is repeated, or the first three are used."""
    chosen = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    whole = chosen.round().byte() if chosen.is_floating_point() else chosen
    return Image.fromarray(whole.permute(1, 2, 0).contiguous().numpy())
