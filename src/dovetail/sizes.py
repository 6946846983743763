"""Sizes of images in pixels: the side of a square, or (height, width).

`as_size` is the only place that reads the spellings of users. Everything else gets a `Size` and calls `sides`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dovetail.errors import OptionsError

Size = int | tuple[int, int]
"""The side of a square image, or the (height, width) of an image that is not square, in pixels."""


def as_size(value: Any, name: str = "image_size") -> Size:
    """Return 224 for 224, "224" or (224, 224), and (64, 128) for "64x128", (64, 128) or [64, 128].

    Raises:
        OptionsError: If the value is none of these. `name` is the option in the message.
    """
    parts = re.split(r"\s*[xX×]\s*", value.strip()) if isinstance(value, str) else value
    parts = list(parts) if isinstance(parts, Sequence) else [parts]
    numbers: list[Any] = [int(one) if isinstance(one, str) and one.isdecimal() else one for one in parts]
    if len(numbers) not in (1, 2) or not all(isinstance(one, int) and not isinstance(one, bool) for one in numbers):
        raise OptionsError(
            f"{name} is {value!r}; it must be a whole number of pixels, or a height and a width such as 64x128."
        )
    height, width = int(numbers[0]), int(numbers[-1])
    return height if height == width else (height, width)


def sides(size: Size) -> tuple[int, int]:
    """Return height and width."""
    return size if isinstance(size, tuple) else (size, size)


def size_in_words(size: Size) -> str:
    """Return "224" for a square, "64x128" (height x width) for other sizes."""
    return "x".join(map(str, size)) if isinstance(size, tuple) else str(size)


def multiple_of(size: Size, step: int) -> Size:
    """Return the closest size whose sides are multiples of `step`, at least one `step` each."""
    height, width = (max(round(side / step), 1) * step for side in sides(size))
    return as_size((height, width))


def times(size: Size, factor: int) -> Size:
    """Return a size with both sides multiplied."""
    height, width = sides(size)
    return as_size((height * factor, width * factor))


def with_aspect_of(side_px: int, size: Size, step: int) -> Size:
    """Return the size with `side_px` as its shorter side and the aspect ratio of `size`.

    The longer side is rounded to the closest multiple of `step`. The result is the square of `side_px` if `size` is
    a square.
    """
    height, width = sides(size)
    if height == width:
        return side_px
    longer = max(round(side_px * max(height, width) / min(height, width) / step), 1) * step
    return as_size((side_px, longer) if height < width else (longer, side_px))
