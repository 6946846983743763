"""Finds the image in an item of a dataset, and reads it.

Shapes: H x W pixels, C channels.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from dovetail.data.reading.decode import (
    DEEP_MODES,
    LazyImage,
    UnreadableError,
    from_array,
    from_image,
    open_bytes,
    read_file,
)

KEYS = ("image", "img", "pixel_values", "jpg", "png")
"""Usual names of the image in an item that is a mapping, and of the image column of a table."""

Found = Image.Image | np.ndarray | bytes


def image_in(item: Any) -> Found:
    """Return the image of an item of a dataset: a Pillow image, an array [H, W] or [H, W, C], or the bytes of a file.

    Args:
        item: A Pillow image, an array [H, W] or [H, W, C], a tensor [C, H, W] or [H, W], the path or the bytes of an
            image file; a tuple or list with one of them first; or a mapping with one of them under a name in `KEYS`.
            Values are uint8, floats in [0, 1], or as the value range of the run.

    Raises:
        UnreadableError: The item has no image.
    """
    if isinstance(item, Mapping):
        return image_in(_of_mapping(item))
    if isinstance(item, tuple | list) and len(item):
        return image_in(item[0])
    if isinstance(item, Tensor):
        item = item.detach().cpu()
        return np.asarray(item.movedim(0, -1) if item.ndim == 3 else item)
    if isinstance(item, str | os.PathLike):
        return read_file(Path(item))
    if isinstance(item, Image.Image | np.ndarray | bytes):
        return item
    raise UnreadableError(f"expected an image, got {type(item).__name__}")


def _of_mapping(item: Mapping[Any, Any]) -> Any:
    """Return the image of a mapping, or the file of a Hugging Face image that is not decoded."""
    if item.keys() == {"bytes", "path"}:
        return item["path"] if item["bytes"] is None else item["bytes"]
    key = next((key for key in KEYS if key in item), None)
    if key is None:
        raise UnreadableError(
            f"expected an image under one of the keys {', '.join(KEYS)}, got the keys {', '.join(map(str, item))}"
        )
    return item[key]


def side_in(item: Any) -> Mapping[str, Any]:
    """Return the side data of an item of a dataset by name, which methods ask for (`ViewPlan.side`, `segments`).

    Args:
        item: A mapping, whose entries are the side data, or a tuple or list, whose second element is named "label".
            Other items have none.
    """
    if isinstance(item, Mapping):
        return {str(name): value for name, value in item.items()}
    return {"label": item[1]} if isinstance(item, tuple | list) and len(item) > 1 else {}


def opened_item(image: Found, channels: int) -> LazyImage:
    """Open the image of an item with `channels` channels. Raise `UnreadableError` if it cannot be read."""
    if isinstance(image, bytes):
        return open_bytes(image, channels)
    return from_image(image, channels) if isinstance(image, Image.Image) else from_array(image, channels)


def encoded_item(image: Found) -> bytes:
    """Return the image of an item as the bytes of a file with the same values: .npy for arrays and deep images."""
    if isinstance(image, bytes):
        return image
    file = io.BytesIO()
    if isinstance(image, Image.Image) and image.mode not in DEEP_MODES:
        with_alpha = image.mode in ("LA", "PA", "RGBA") or image.has_transparency_data
        (image if image.mode in ("1", "L", "RGB") else image.convert("RGBA" if with_alpha else "RGB")).save(file, "PNG")
    else:
        np.save(file, np.asarray(image), allow_pickle=False)
    return file.getvalue()
