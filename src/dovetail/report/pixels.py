"""Images in and out of pictures: displayable arrays, data URIs, batches that a network takes.

Shapes: C channels, H x W pixels, N images, S the side of a square.
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
from dovetail.data.reading.decode import Photograph, UnreadableError
from dovetail.data.sources import ImageSource
from dovetail.downstream.probe.features import whole_view
from dovetail.errors import OptionsError
from dovetail.networks.network import Network
from dovetail.views.batch import statistics
from dovetail.views.plan import ViewPlan
from dovetail.views.view import View

Rgb = NDArray[np.uint8]
"""[H, W, 3]."""

JPEG_QUALITY = 82
MOST_TRIES = 16
SPARE = 2  # an image is decoded with at least this many pixels for one that is shown


def shown(pixels: Tensor) -> Rgb:
    """Return uint8 pixels [C, H, W] as RGB: grey is repeated, of two channels the first counts, of many three."""
    chosen = pixels[:3] if pixels.shape[0] >= 3 else pixels[:1].expand(3, -1, -1)
    return np.ascontiguousarray(chosen.permute(1, 2, 0).cpu().numpy())


def unnormalised(pixels: Tensor, plan: ViewPlan) -> Tensor:
    """Return normalised float pixels [..., C, H, W] as uint8."""
    mean, std = (torch.tensor(one)[:, None, None] for one in statistics(plan, pixels.shape[-3]))
    return ((pixels.cpu().float() * std + mean).clamp(0, 1) * 255).round().byte()


def jpeg_uri(pixels: Rgb) -> str:
    """Return an image as a data URI."""
    return _uri(pixels, "JPEG")


def png_uri(pixels: Rgb) -> str:
    """Return a picture as a data URI, exact to the last bit."""
    return _uri(pixels, "PNG")


def _uri(pixels: Rgb, format: str) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format, quality=JPEG_QUALITY, optimize=True)
    return f"data:image/{format.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"


def shrink_for(photograph: Photograph, longest_px: int) -> int:
    """Return the divisor (1, 2, 4 or 8) by which an image may be decoded smaller to be shown at that size."""
    spare = max(photograph.width_px, photograph.height_px) / (SPARE * longest_px)
    return next(shrink for shrink in (8, 4, 2, 1) if spare >= shrink or shrink == 1)


def thumbnail(photograph: Photograph, longest_px: int) -> Rgb:
    """Return an image as RGB with its longer side at most `longest_px`."""
    image = Image.fromarray(shown(photograph.decode(shrink_for(photograph, longest_px))))
    image.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    return np.asarray(image)


def square(photograph: Photograph, side_px: int) -> Tensor:
    """Return uint8 [C, S, S]: the shorter side brought to `side_px` and the middle taken, antialiased."""
    shortest = min(photograph.width_px, photograph.height_px)
    shrink = next(shrink for shrink in (8, 4, 2, 1) if shortest >= SPARE * shrink * side_px or shrink == 1)
    pixels = photograph.decode(shrink)
    height, width = pixels.shape[1:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    middle = pixels[None, :, top : top + side, left : left + side]
    return torch.nn.functional.interpolate(middle, size=(side_px, side_px), mode="bicubic", antialias=True)[0]


def images_in(images: Any) -> ImageSource:
    """Return the images to draw; raise `OptionsError` where none were named, or none are there."""
    if images is None:
        raise OptionsError("No images were named; give a folder of images with --images.")
    source = open_source(images)
    if source.left_out:
        print(source.left_out)
    return source


def spread_over(source: ImageSource, count: int) -> list[range]:
    """Return up to `count` stretches of indices, evenly spaced over a source, to take a readable image of each."""
    starts = [place * source.num_images // count for place in range(count)]
    ends = [*starts[1:], source.num_images]
    stretches = [range(start, min(end, start + MOST_TRIES)) for start, end in zip(starts, ends, strict=True)]
    return [stretch for stretch in stretches if stretch]


def sample_squares(source: ImageSource, *, count: int, side_px: int, channels: int) -> tuple[list[str], list[Tensor]]:
    """Return the names of up to `count` images, evenly spaced over a source, and uint8 squares [C, S, S] of them.

    In place of one that cannot be read the next that can be is taken.
    """
    names: list[str] = []
    squares: list[Tensor] = []
    for stretch in spread_over(source, count):
        for index in stretch:
            try:
                squares.append(square(source.open(index, channels), side_px))
            except UnreadableError:
                continue
            names.append(source.name(index))
            break
    return names, squares


def as_view(squares: Sequence[Tensor], plan: ViewPlan, network: Network) -> View:
    """Return uint8 squares [C, S, S] as one view [N, C, S, S], normalised, on the network's device and of its dtype."""
    like = next(network.parameters())
    mean, std = (torch.tensor(one)[:, None, None] for one in statistics(plan, squares[0].shape[0]))
    pixels = (torch.stack(list(squares)).float() / 255 - mean) / std
    view = whole_view(pixels.to(like.device))
    return replace(view, pixels=view.pixels.to(like.dtype))
