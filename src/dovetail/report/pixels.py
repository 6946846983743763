"""Converts images: to displayable arrays, to data URIs, and to batches for a network.

Shapes: C channels, H x W pixels, N images, h x w pixels of a crop.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from dovetail.data.open import open_source
from dovetail.data.reading.decode import LazyImage, UnreadableError
from dovetail.data.sources import ImageSource
from dovetail.downstream.probe.features import whole_view
from dovetail.errors import OptionsError
from dovetail.networks.network import Network
from dovetail.sizes import Size, sides
from dovetail.views.batch import statistics
from dovetail.views.plan import ViewPlan
from dovetail.views.view import View

Rgb = NDArray[np.uint8]
"""[H, W, 3]."""

JPEG_QUALITY = 82
MOST_TRIES = 16
SPARE = 2  # decode at least this many pixels per displayed pixel


def shown(pixels: Tensor) -> Rgb:
    """Convert uint8 pixels [C, H, W] to RGB: the first channel is repeated, or the first three are used."""
    chosen = pixels[:3] if pixels.shape[0] >= 3 else pixels[:1].expand(3, -1, -1)
    return np.ascontiguousarray(chosen.permute(1, 2, 0).cpu().numpy())


def unnormalised(pixels: Tensor, plan: ViewPlan) -> Tensor:
    """Convert normalised float pixels [..., C, H, W] to uint8."""
    mean, std = (torch.tensor(one)[:, None, None] for one in statistics(plan, pixels.shape[-3]))
    return ((pixels.cpu().float() * std + mean).clamp(0, 1) * 255).round().byte()


def jpeg_uri(pixels: Rgb) -> str:
    """Return an image as a JPEG data URI."""
    return _uri(pixels, "JPEG")


def png_uri(pixels: Rgb) -> str:
    """Return an image as a PNG data URI (lossless)."""
    return _uri(pixels, "PNG")


def _uri(pixels: Rgb, format: str) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, quality=JPEG_QUALITY, optimize=True)
    return f"data:image/{format.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def shrink_for(image: LazyImage, longest_px: int) -> int:
    """Return the factor (1, 2, 4 or 8) by which an image may be decoded smaller for display at `longest_px`."""
    spare = max(image.width_px, image.height_px) / (SPARE * longest_px)
    return next(shrink for shrink in (8, 4, 2, 1) if spare >= shrink or shrink == 1)


def thumbnail(image: LazyImage, longest_px: int) -> Rgb:
    """Return an image as RGB with a longer side of at most `longest_px`."""
    small = Image.fromarray(shown(image.decode(shrink_for(image, longest_px))))
    small.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    return np.asarray(small)


def central_crop(image: LazyImage, size_px: Size) -> Tensor:
    """Return the largest centre crop of an image with the shape of `size_px`, resized to [C, h, w] with antialiasing.

    It is uint8, or float32 in 0 to 255 if all levels of an image are kept (`dovetail.data.reading.values.all_levels`).
    """
    to_height, to_width = sides(size_px)
    spare = min(image.width_px / to_width, image.height_px / to_height) / SPARE
    shrink = next(shrink for shrink in (8, 4, 2, 1) if spare >= shrink or shrink == 1)
    pixels = image.decode(shrink)
    height, width = pixels.shape[1:]
    scale = min(height / to_height, width / to_width)
    high, wide = max(round(scale * to_height), 1), max(round(scale * to_width), 1)
    top, left = (height - high) // 2, (width - wide) // 2
    middle = pixels[None, :, top : top + high, left : left + wide]
    resized = torch.nn.functional.interpolate(middle, size=(to_height, to_width), mode="bicubic", antialias=True)[0]
    return resized.clamp_(0, 255) if resized.is_floating_point() else resized


def images_in(images: Any) -> ImageSource:
    """Open the images to draw. Raise `OptionsError` if they are not specified."""
    if images is None:
        raise OptionsError("--images is missing; specify a folder of images.")
    source = open_source(images)
    if source.left_out:
        print(source.left_out)
    return source


def spread_over(source: ImageSource, count: int) -> list[range]:
    """Return up to `count` ranges of indices, evenly spaced over a source. One readable image is used from each."""
    starts = [place * source.num_images // count for place in range(count)]
    ends = [*starts[1:], source.num_images]
    stretches = [range(start, min(end, start + MOST_TRIES)) for start, end in zip(starts, ends, strict=True)]
    return [stretch for stretch in stretches if stretch]


def central_crops(source: ImageSource, *, count: int, size_px: Size, channels: int) -> tuple[list[str], list[Tensor]]:
    """Return the names and uint8 centre crops [C, h, w] of up to `count` images, evenly spaced over a source.

    An unreadable image is replaced by the next readable one.
    """
    names: list[str] = []
    crops: list[Tensor] = []
    for stretch in spread_over(source, count):
        for index in stretch:
            try:
                crops.append(central_crop(source.open(index, channels), size_px))
            except UnreadableError:
                continue
            names.append(source.name(index))
            break
    return names, crops


def as_view(crops: Sequence[Tensor], plan: ViewPlan, network: Network) -> View:
    """Return uint8 crops [C, h, w] as a normalised view [N, C, h, w] with the device and dtype of the network."""
    like = next(network.parameters())
    mean, std = (torch.tensor(one)[:, None, None] for one in statistics(plan, crops[0].shape[0]))
    pixels = (torch.stack(list(crops)).float() / 255 - mean) / std
    view = whole_view(pixels.to(like.device))
    return replace(view, pixels=view.pixels.to(like.dtype))
