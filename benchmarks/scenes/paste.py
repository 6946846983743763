"""Pasting: cut-outs on a background, with soft edges, shadows and one light, and the mask of who owns which pixel.

A pixel belongs to the last object that gives at least half of its light there. Objects are pasted from far to near, by
where they stand; those of which too little is left are taken away and the rest is pasted anew.

Shapes: S the side of a scene, h x w that of a cut-out in it. Colours are in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from benchmarks.scenes.stock import Cutout

Colours = NDArray[np.float32]
Owners = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Sprite:
    """A cut-out as it is pasted.

    Attributes:
        label: See `Cutout`.
        colours: [h, w, 3], not weighted by opacity.
        opacity: [h, w].
        top, left: Of its place in the scene, in pixels; may lie outside.
    """

    label: int
    colours: Colours
    opacity: Colours
    top: int
    left: int

    @property
    def bottom(self) -> int:
        """Where it stands."""
        return self.top + self.opacity.shape[0]


@dataclass(frozen=True)
class Light:
    """The light of a scene.

    Attributes:
        slant: How far shadows lean to the right, in heights of the object.
        strength: Share of light that shadows take.
        blur: Softness of shadows in sides of the scene.
    """

    slant: float
    strength: float
    blur: float


def sprite_of(cutout: Cutout, *, long_side_px: float, angle: float, flip: bool, edge_px: float) -> Sprite:
    """Return a cut-out resized, turned and with a soft edge, at the place (0, 0).

    Args:
        cutout: The object.
        long_side_px: Longer side it gets.
        angle: Degrees against the clock.
        flip: Whether it is mirrored.
        edge_px: Standard deviation of the blur of its edge.
    """
    picture = cutout.picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else cutout.picture
    factor = long_side_px / max(picture.size)
    if factor < 0.5:  # the rim of a photographic cut-out holds some of its old background
        picture = picture.copy()
        picture.putalpha(picture.getchannel("A").filter(ImageFilter.MinFilter(3)))
    size = tuple(max(round(side * factor), 2) for side in picture.size)
    weighted = picture.convert("RGBa").resize((size[0], size[1]), Image.Resampling.LANCZOS, reducing_gap=3.0)
    weighted = weighted.convert("RGBA").rotate(angle, Image.Resampling.BICUBIC, expand=True)
    values = np.asarray(weighted, dtype=np.float32) / 255
    opacity = blurred(values[..., 3], edge_px)
    return Sprite(cutout.label, values[..., :3], opacity, 0, 0)


def blurred(values: Colours, deviation_px: float) -> Colours:
    """Return [h, w] values in [0, 1] after a Gaussian blur."""
    if deviation_px <= 0:
        return values
    picture = Image.fromarray(np.rint(values * 255).astype(np.uint8))
    return np.asarray(picture.filter(ImageFilter.GaussianBlur(deviation_px)), dtype=np.float32) / 255


def pasted(
    background: Colours, sprites: Sequence[Sprite], light: Light, *, min_visible: float, min_pixels: int
) -> tuple[Colours, Owners, list[int]]:
    """Return the scene [S, S, 3], the owner of each pixel [S, S], and the owners' labels.

    Owner 0 is the background and what has no class; owner k is the object whose label is labels[k - 1].

    Args:
        background: [S, S, 3].
        sprites: Objects at their places.
        light: Of the shadows.
        min_visible: Share of an object that must be seen of what lies within the scene.
        min_pixels: Pixels of an object that must be seen.
    """
    kept = sorted(sprites, key=lambda one: one.bottom)
    while True:
        owners = owners_of(kept, background.shape[0])
        counts = np.bincount(owners.ravel(), minlength=len(kept) + 1)[1:]
        inside = [int((placed(one.opacity, one, background.shape[0]) >= 0.5).sum()) for one in kept]
        short = [
            place
            for place, (count, whole) in enumerate(zip(counts, inside, strict=True))
            if count < max(min_pixels, min_visible * whole)
        ]
        if not short:
            break
        kept.pop(min(short, key=lambda place: counts[place]))
    canvas = background
    for sprite in kept:
        canvas = canvas * (1 - shadow_of(sprite, light, canvas.shape[0])[..., None])
        opacity = placed(sprite.opacity, sprite, canvas.shape[0])[..., None]
        canvas = canvas * (1 - opacity) + placed(sprite.colours, sprite, canvas.shape[0]) * opacity
    return canvas, *without_others(owners, [one.label for one in kept])


def owners_of(sprites: Sequence[Sprite], side: int) -> Owners:
    """Return [S, S] which sprite, from 1, owns each pixel; 0 for none."""
    owners = np.zeros((side, side), dtype=np.uint8)
    for number, sprite in enumerate(sprites, start=1):
        owners[placed(sprite.opacity, sprite, side) >= 0.5] = number
    return owners


def without_others(owners: Owners, labels: Sequence[int]) -> tuple[Owners, list[int]]:
    """Return owners and labels with objects of no class turned into background."""
    table = np.zeros(len(labels) + 1, dtype=np.uint8)
    known = [number for number, label in enumerate(labels, start=1) if label >= 0]
    table[known] = np.arange(1, len(known) + 1)
    return table[owners], [labels[number - 1] for number in known]


def placed(values: Colours, sprite: Sprite, side: int) -> Colours:
    """Return [S, S, ...] with a sprite's values at its place and 0 elsewhere."""
    whole = np.zeros((side, side, *values.shape[2:]), dtype=np.float32)
    height, width = values.shape[:2]
    top, left = max(sprite.top, 0), max(sprite.left, 0)
    bottom, right = min(sprite.top + height, side), min(sprite.left + width, side)
    if top < bottom and left < right:
        rows = slice(top - sprite.top, bottom - sprite.top)
        whole[top:bottom, left:right] = values[rows, left - sprite.left : right - sprite.left]
    return whole


def shadow_of(sprite: Sprite, light: Light, side: int) -> Colours:
    """Return [S, S] the share of light that a sprite takes away: what it throws on the ground, and close around it."""
    height, width = sprite.opacity.shape
    flat = max(round(0.3 * height), 1)
    lean = abs(light.slant) * height
    silhouette = Image.fromarray(np.rint(sprite.opacity * 255).astype(np.uint8)).resize((width, flat))
    wide = Image.new("L", (width + round(lean), flat))
    wide.paste(silhouette, (round(lean) if light.slant < 0 else 0, 0))
    # Rows of the shadow are shifted the more, the farther they lie from where the object stands.
    shift = light.slant * height / flat
    wide = wide.transform(wide.size, Image.Transform.AFFINE, (1, shift, -shift * flat, 0, 1, 0))
    left = sprite.left - (round(lean) if light.slant < 0 else 0)
    thrown = Sprite(0, sprite.colours, np.asarray(wide, np.float32) / 255, sprite.bottom - flat, left)
    ground = blurred(placed(thrown.opacity, thrown, side), light.blur * side)
    around = blurred(placed(sprite.opacity, sprite, side), 0.5 * light.blur * side)
    return light.strength * np.maximum(ground, 0.5 * around)
