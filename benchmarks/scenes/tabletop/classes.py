"""The classes of the set and the Infinigen factories that make their objects."""

from __future__ import annotations

from collections.abc import Mapping

FACTORIES: Mapping[str, tuple[str, ...]] = {
    "bottle": ("BottleFactory",),
    "can": ("CanFactory",),
    "cup": ("CupFactory",),
    "bowl": ("BowlFactory",),
    "wineglass": ("WineglassFactory",),
    "pan": ("PanFactory",),
    "chair": ("ChairFactory", "OfficeChairFactory", "BarChairFactory"),
    "sofa": ("SofaFactory",),
    "table": ("TableDiningFactory",),
    "lamp": ("DeskLampFactory", "FloorLampFactory"),
    "monitor": ("MonitorFactory",),
    "apple": ("FruitFactoryApple",),
    "plant": ("SnakePlantFactory", "SucculentFactory"),
    "books": ("BookStackFactory",),
    "toilet": ("ToiletFactory",),
    "microwave": ("MicrowaveFactory",),
}
CLASSES = tuple(FACTORIES)
ASSETS = 20
"""Objects of each class: 11 for training, 3 to choose settings with, 6 to test on."""


def assets() -> list[dict[str, str | int]]:
    """Return every asset to make: a name that begins with its class, a factory and a seed."""
    return [
        {"name": f"{label}-{seed:02d}", "factory": factories[seed % len(factories)], "seed": seed}
        for seed in range(ASSETS)
        for label, factories in FACTORIES.items()
    ]


MATERIALS = (
    *("wood.Wood", "wood.WoodOld", "wood.TableWood", "wood.TiledWood", "wood.HardwoodFloor", "wood.BlondePlywood"),
    *("wood.NonWoodTile", "ceramic.Brick", "ceramic.Concrete", "ceramic.MarbleRegular", "ceramic.MarbleVoronoi"),
    *("ceramic.Plaster", "ceramic.tile.Tile", "fabric.Leather", "fabric.PlaidFabric", "fabric.LinedFabric"),
    "plastic.BumpyRubberFloor",
)
"""Infinigen's materials that give a floor with a pattern of its own."""
VARIANTS = 2


def floors() -> list[dict[str, str | int]]:
    """Return every floor to paint: a name that begins with its material, a material and a seed."""
    return [
        {"name": f"{material.rpartition('.')[2].lower()}-{seed}", "material": material, "seed": seed}
        for seed in range(VARIANTS)
        for material in MATERIALS
    ]
