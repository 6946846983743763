"""Scenes: what is pasted where, on which background, in which light; each a pure function of (plan, split, index).

Nothing but its content should tell an object from the background. Objects of no class are pasted like the others, every
edge has the scene's softness, colours are drawn towards those around, shadows lie on objects too, and blur, grain and
JPEG come last, over all of it.

Shapes: S the side of a scene in pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from benchmarks.scenes.paste import Colours, Light, Owners, Sprite, blurred, pasted, placed, sprite_of
from benchmarks.scenes.stock import OTHER, SPLITS, Cutout, Photograph, Split, Stock

Backdrop = Callable[[Stock, int, np.random.Generator], tuple[Colours, float]]
"""Photographs, side in pixels, random numbers -> [S, S, 3] and the height in [0, 1] of where the ground begins."""


@dataclass(frozen=True)
class ScenePlan:
    """How scenes are made.

    Attributes:
        side_px: Side of a scene.
        objects: Smallest and largest number of objects of classes.
        others: Smallest and largest number of objects of no class.
        long_side: Smallest and largest longer side of an object, in sides of the scene.
        turn: Largest angle in degrees.
        upright: Whether objects stand on the ground, larger the nearer they are.
        min_visible: Share of an object that is not hidden.
        min_pixels: Of an object that are seen, for a side of 128 px.
        seed: Of everything drawn.
    """

    side_px: int = 128
    objects: tuple[int, int] = (2, 5)
    others: tuple[int, int] = (0, 2)
    long_side: tuple[float, float] = (0.25, 0.8)
    turn: float = 12.0
    upright: bool = False
    min_visible: float = 0.35
    min_pixels: int = 60
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Scene:
    """A scene: pixels [S, S, 3], which object owns each pixel [S, S] (0: none), and the objects' labels."""

    pixels: np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]
    owners: Owners
    labels: list[int]

    @property
    def mask(self) -> Owners:
        """Return [S, S] the class of each pixel: 0 for background, label + 1 for objects."""
        return np.array([0, *(label + 1 for label in self.labels)], dtype=np.uint8)[self.owners]


def scene(stock: Stock, plan: ScenePlan, backdrop: Backdrop, split: Split, index: int) -> Scene:
    """Return a scene from the stock of a split's side."""
    rng = np.random.default_rng((plan.seed, SPLITS.index(split), index))
    background, ground = backdrop(stock, plan.side_px, rng)
    light = Light(rng.uniform(-0.8, 0.8), rng.uniform(0.1, 0.5), rng.uniform(0.01, 0.03))
    edge_px = rng.uniform(0.25, 0.7) * plan.side_px / 128
    sprites = [
        coloured(put(one, plan, ground, edge_px, rng), background, rng) for one in chosen_objects(stock, plan, rng)
    ]
    smallest = round(plan.min_pixels * (plan.side_px / 128) ** 2)
    canvas, owners, labels = pasted(background, sprites, light, min_visible=plan.min_visible, min_pixels=smallest)
    return Scene(as_taken(canvas, rng), owners, labels)


def chosen_objects(stock: Stock, plan: ScenePlan, rng: np.random.Generator) -> list[Cutout]:
    """Return the objects of a scene, every class equally likely, and those of no class."""
    by_label: Mapping[int, list[Cutout]] = {
        label: [one for one in stock.cutouts if one.label == label] for label in range(OTHER, len(stock.classes))
    }
    labels = rng.integers(len(stock.classes), size=rng.integers(plan.objects[0], plan.objects[1] + 1)).tolist()
    if by_label[OTHER]:
        labels += [OTHER] * int(rng.integers(plan.others[0], plan.others[1] + 1))
    chosen: list[Cutout] = []
    for label in labels:
        new = [one for one in by_label[label] if one not in chosen]  # nothing twice in a scene
        if new:
            chosen.append(new[rng.integers(len(new))])
    return chosen


def put(cutout: Cutout, plan: ScenePlan, ground: float, edge_px: float, rng: np.random.Generator) -> Sprite:
    """Return a cut-out of random size at a random place, up to a third of it outside."""
    side, (low, high) = plan.side_px, plan.long_side
    stands = rng.uniform(ground, 1.05)
    if plan.upright:
        near = (stands - ground) / max(1.05 - ground, 0.05)
        share = (low + (high - low) * near) * rng.uniform(0.8, 1.2)
    else:
        share = low * (high / low) ** rng.random()
    turn = float(rng.uniform(-plan.turn, plan.turn))
    sprite = sprite_of(cutout, long_side_px=share * side, angle=turn, flip=bool(rng.random() < 0.5), edge_px=edge_px)
    height, width = sprite.opacity.shape
    left = round(rng.uniform(-width / 3, side - 2 * width / 3))
    top = round(stands * side) - height if plan.upright else round(rng.uniform(-height / 3, side - 2 * height / 3))
    return Sprite(sprite.label, sprite.colours, sprite.opacity, top, left)


def coloured(sprite: Sprite, background: Colours, rng: np.random.Generator) -> Sprite:
    """Return a sprite whose brightness, contrast and tint are drawn some way towards what is behind it."""
    weight = placed(sprite.opacity, sprite, background.shape[0])[..., None]
    if weight.sum() < 1:
        return sprite
    behind = (background * weight).sum((0, 1)) / weight.sum()
    own_weight = sprite.opacity[..., None]
    own = (sprite.colours * own_weight).sum((0, 1)) / own_weight.sum()
    contrast = rng.uniform(0.75, 1.1)
    level = rng.uniform(0.0, 0.4) * (behind.mean() - own.mean()) + rng.uniform(-0.06, 0.06)
    tint = rng.uniform(0.0, 0.4) * ((behind - behind.mean()) - (own - own.mean()))
    colours = np.clip((sprite.colours - own) * contrast + own + level + tint, 0, 1).astype(np.float32)
    return Sprite(sprite.label, colours, sprite.opacity, sprite.top, sprite.left)


def as_taken(canvas: Colours, rng: np.random.Generator) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint8]]:
    """Return a canvas as a camera would give it: a little blurred, exposed and grainy, [S, S, 3]."""
    blur, exposure, grain = rng.uniform(0.0, 0.6), rng.uniform(0.8, 1.2), rng.uniform(0.004, 0.025)
    soft = np.stack([blurred(np.clip(canvas[..., channel], 0, 1), blur) for channel in range(3)], axis=-1)
    noisy = soft * exposure + rng.normal(0.0, grain, size=soft.shape)
    return np.rint(np.clip(noisy, 0, 1) * 255).astype(np.uint8)


def outdoors(stock: Stock, side: int, rng: np.random.Generator) -> tuple[Colours, float]:
    """Return a square part of one photograph."""
    return crop(stock.photographs[rng.integers(len(stock.photographs))], side, rng), 0.0


def indoors(stock: Stock, side: int, rng: np.random.Generator) -> tuple[Colours, float]:
    """Return a wall above a floor, each plain or with the texture of a photograph, the floor seen in perspective."""
    horizon = rng.uniform(0.3, 0.55)
    row = round(horizon * side)
    wall, floor = (surface(stock, side, rng) for _ in range(2))
    pull = side * rng.uniform(0.2, 0.4)
    corners = (0, 0, pull, side, side - pull, side, side, 0)  # upper left, lower left, lower right, upper right
    texture = Image.fromarray(np.rint(floor * 255).astype(np.uint8))
    flat = texture.transform((side, side - row), Image.Transform.QUAD, corners, Image.Resampling.BICUBIC)
    room = wall.copy()
    room[row:] = np.asarray(flat, dtype=np.float32) / 255
    shade = np.ones((side, 1, 1), dtype=np.float32)
    shade[:row, 0, 0] = np.linspace(rng.uniform(0.75, 1.05), 1.0, row)
    return np.clip(room * shade, 0, 1).astype(np.float32), horizon + 0.05


def surface(stock: Stock, side: int, rng: np.random.Generator) -> Colours:
    """Return [S, S, 3]: a paint, with more or less of a photograph's structure in it."""
    texture = crop(stock.photographs[rng.integers(len(stock.photographs))], side, rng)
    paint = np.clip(rng.uniform(0.35, 0.95) + rng.uniform(-0.15, 0.15, size=3), 0, 1).astype(np.float32)
    depth = rng.choice([0.08, 0.3, 0.7])
    return np.clip(paint + depth * (texture - texture.mean((0, 1))), 0, 1).astype(np.float32)


def crop(photograph: Photograph, side: int, rng: np.random.Generator) -> Colours:
    """Return a square part [S, S, 3] of a photograph, at least `side` pixels of it or its whole height."""
    picture = photograph.picture
    shorter = min(picture.size)
    size = rng.uniform(min(max(side, 0.4 * shorter), shorter), shorter)
    left, top = (rng.uniform(0, length - size) for length in picture.size)
    box = (left, top, left + size, top + size)
    part = picture.resize((side, side), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(part, dtype=np.float32) / 255
