"""What stands where, in which light, seen from where: each scene is a pure function of (stock, seed, split, index).

Assets, HDR images and floors are divided between training, choosing and testing before any scene is drawn, as the other
sets divide their objects and backgrounds. The camera is drawn first; an object gets a place only where the image shows
most of it and no other object stands in the way of much of it.

Units: metres, radians; the image is [0, 1] x [0, 1], downwards.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.scenes.stock import SPLITS, Side, Split, divided, side_of

OBJECTS = (4, 7)
LONG_SIDE_M = (0.65, 1.1)
SENSOR_MM = 36.0
TRIES = 60  # places tried for one object
ROUNDS = 40  # objects tried for one scene
INSIDE = 0.7  # smallest share of an object's box that lies in the image
COVERED = 0.5  # largest share of an object's box that a nearer one's covers
LIGHTS: Mapping[Side, tuple[str, ...]] = {
    "train": ("city", "courtyard", "interior", "studio"),
    "val": ("sunrise",),
    "test": ("forest", "sunset"),
}
"""HDR images that come with Blender; its "night" is left out, since little can be seen in it."""

Box = tuple[float, float, float, float]
RIM = np.array(
    [(math.cos(angle * math.pi / 6), math.sin(angle * math.pi / 6), top) for angle in range(12) for top in (0, 1)]
)
"""Points [24, 3] on the rims of an upright cylinder of radius and height 1."""


@dataclass(frozen=True)
class Asset:
    """An object as it was made: its name, its class, and the corners of its box in its own units."""

    name: str
    label: str
    low: tuple[float, float, float]
    high: tuple[float, float, float]

    @property
    def sides(self) -> tuple[float, float, float]:
        """Width, depth and height in the asset's own units."""
        width, depth, height = (high - low for low, high in zip(self.low, self.high, strict=True))
        return width, depth, height


@dataclass(frozen=True)
class Stock:
    """What scenes are made of; `of` gives one side's part of it.

    Attributes:
        classes: Names of the classes, in the order of their ids.
        assets: All objects.
        floors: Names of the pictures of floors.
        lights: Names of the HDR images.
    """

    classes: tuple[str, ...]
    assets: tuple[Asset, ...]
    floors: tuple[str, ...]
    lights: tuple[str, ...] = tuple(light for names in LIGHTS.values() for light in names)

    def of(self, side: Side, seed: int) -> Stock:
        """Return the assets, floors and lights of one side: 55 % train, 15 % val and 30 % test, class by class."""
        assets: set[str] = set()
        for number, label in enumerate(self.classes):
            assets |= members_of([one.name for one in self.assets if one.label == label], side, (seed, 0, number))
        floors: set[str] = set()
        for number, kind in enumerate(sorted({kind_of(floor) for floor in self.floors})):
            floors |= members_of([one for one in self.floors if kind_of(one) == kind], side, (seed, 1, number))
        return Stock(
            self.classes,
            tuple(one for one in self.assets if one.name in assets),
            tuple(one for one in self.floors if one in floors),
            LIGHTS[side],
        )


@dataclass(frozen=True)
class Camera:
    """A camera at `place` that looks at `target`, with a lens of `lens_mm` before a square sensor of 36 mm."""

    place: tuple[float, float, float]
    target: tuple[float, float, float]
    lens_mm: float

    def seen(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return for points [N, 3] where the image shows them (x to the right, y downwards) and how far, [N, 3]."""
        eye = np.array(self.place)
        ahead = np.array(self.target) - eye
        ahead /= np.linalg.norm(ahead)
        right = np.array((ahead[1], -ahead[0], 0.0)) / math.hypot(ahead[0], ahead[1])
        down = np.array(
            (-right[1] * ahead[2], right[0] * ahead[2], right[1] * ahead[0] - right[0] * ahead[1])
        )  # of a camera that is not tilted to a side
        places = (points - eye) @ np.stack([right, down, ahead], axis=1)
        factor = self.lens_mm / SENSOR_MM / np.maximum(places[:, 2:], 1e-6)
        return np.concatenate([0.5 + factor * places[:, :2], places[:, 2:]], axis=1)


@dataclass(frozen=True)
class Placed:
    """An object in a scene: its asset and class, the factor to its own units, its middle on the floor, its turn."""

    asset: str
    label: str
    scale: float
    x: float
    y: float
    turn: float
    offset: tuple[float, float, float]
    """Middle of the asset's box, and its lowest point, in the asset's own units."""


@dataclass(frozen=True)
class Light:
    """An HDR image all around, turned and of a strength."""

    image: str
    turn: float
    strength: float


@dataclass(frozen=True)
class Floor:
    """A picture that is repeated over the floor: metres that one copy covers, turn and roughness."""

    image: str
    metres: float
    turn: float
    roughness: float


@dataclass(frozen=True)
class SceneSpec:
    """Everything that a rendering needs to know of a scene."""

    split: Split
    index: int
    camera: Camera
    light: Light
    floor: Floor
    objects: tuple[Placed, ...]
    noise: int

    def to_json(self) -> dict[str, Any]:
        """Return the scene as plain values."""
        return asdict(self)


def members_of(names: Sequence[str], side: Side, seed: tuple[int, ...]) -> set[str]:
    """Return the names that belong to a side."""
    return {name for name, place in divided(names, seed).items() if place == side}


def plan_scene(stock: Stock, seed: int, split: Split, index: int) -> SceneSpec:
    """Return a scene of `stock`, which is the part of the split's side."""
    rng = np.random.default_rng((seed, 7, SPLITS.index(split), index))
    camera = draw_camera(rng)
    objects = draw_objects(stock, camera, rng)
    light = Light(str(rng.choice(stock.lights)), rng.uniform(0, math.tau), rng.uniform(0.9, 1.6))
    return SceneSpec(
        split,
        index,
        camera,
        light,
        draw_floor(stock, rng),
        objects,
        int(rng.integers(2**31)),
    )


def draw_floor(stock: Stock, rng: np.random.Generator) -> Floor:
    """Return a floor: painted and photographed ones equally often."""
    kinds = sorted({kind_of(floor) for floor in stock.floors})
    kind = kinds[rng.integers(len(kinds))]
    floors = [floor for floor in stock.floors if kind_of(floor) == kind]
    image = floors[rng.integers(len(floors))]
    return Floor(image, rng.uniform(2.0, 6.0), rng.uniform(0, math.tau), rng.uniform(0.3, 0.9))


def kind_of(floor: str) -> str:
    """Return the part of a floor's name before the first slash."""
    return floor.partition("/")[0]


def side_stock(stock: Stock, seed: int, split: Split) -> Stock:
    """Return what a split may show."""
    return stock.of(side_of(split), seed)


def draw_camera(rng: np.random.Generator) -> Camera:
    """Return a camera that looks down at the middle of the floor."""
    target = (rng.uniform(-0.2, 0.2), rng.uniform(-0.2, 0.2), 0.25)
    around, up, distance = rng.uniform(0, math.tau), math.radians(rng.uniform(16, 52)), rng.uniform(3.4, 4.6)
    flat = distance * math.cos(up)
    place = (
        target[0] + flat * math.cos(around),
        target[1] + flat * math.sin(around),
        target[2] + distance * math.sin(up),
    )
    return Camera(place, target, rng.uniform(40, 56))


def draw_objects(stock: Stock, camera: Camera, rng: np.random.Generator) -> tuple[Placed, ...]:
    """Return 4 to 7 objects, no asset twice, where the image shows them; fewer where no room is left."""
    by_label = {label: [one for one in stock.assets if one.label == label] for label in stock.classes}
    wanted = int(rng.integers(OBJECTS[0], OBJECTS[1] + 1))
    placed: list[Placed] = []
    taken: list[tuple[float, Box, float]] = []  # radius on the floor, box in the image, distance
    for _ in range(ROUNDS):
        if len(placed) == wanted:
            break
        own = by_label[stock.classes[rng.integers(len(stock.classes))]]
        asset = own[rng.integers(len(own))]
        if asset.name in {one.asset for one in placed}:
            continue
        width, depth, height = asset.sides
        scale = rng.uniform(*LONG_SIDE_M) / max(asset.sides)
        radius = scale * math.hypot(width, depth) / 2
        turn = rng.uniform(0, math.tau)
        for _ in range(TRIES):
            x, y = rng.uniform(-1.5, 1.5, size=2)
            box, distance = shown(camera, x, y, radius, scale * height)
            if fits(x, y, radius, box, distance, placed, taken):
                middle_x, middle_y = (asset.low[0] + asset.high[0]) / 2, (asset.low[1] + asset.high[1]) / 2
                placed.append(
                    Placed(asset.name, asset.label, scale, float(x), float(y), turn, (middle_x, middle_y, asset.low[2]))
                )
                taken.append((radius, box, distance))
                break
    return tuple(placed)


def shown(camera: Camera, x: float, y: float, radius: float, height: float) -> tuple[Box, float]:
    """Return the box in the image around an upright cylinder, and the distance of its middle."""
    points = np.concatenate([RIM * (radius, radius, height) + (x, y, 0.0), [(x, y, height / 2)]])
    seen = camera.seen(points)
    low, high = seen[:-1, :2].min(0), seen[:-1, :2].max(0)
    return (float(low[0]), float(low[1]), float(high[0]), float(high[1])), float(seen[-1, 2])


def fits(
    x: float,
    y: float,
    radius: float,
    box: Box,
    distance: float,
    placed: Sequence[Placed],
    taken: Sequence[tuple[float, Box, float]],
) -> bool:
    """Return whether an object is well in the image, touches no other, and neither hides nor is hidden too much."""
    if distance < 1.0 or overlap(box, (0.0, 0.0, 1.0, 1.0)) < INSIDE:
        return False
    for other, (other_radius, other_box, other_distance) in zip(placed, taken, strict=True):
        if math.hypot(x - other.x, y - other.y) < 0.85 * (radius + other_radius):
            return False
        far, near = (box, other_box) if distance > other_distance else (other_box, box)
        if overlap(far, near) > COVERED:
            return False
    return True


def overlap(box: Box, other: Box) -> float:
    """Return the share of a box that another covers."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    area = (box[2] - box[0]) * (box[3] - box[1])
    return max(width, 0.0) * max(height, 0.0) / max(area, 1e-9)
