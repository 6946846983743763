"""What scenes are made of: cut-outs with transparency, photographs, and which split each belongs to.

A cut-out's split is drawn for its group, so that two pictures of one animal never lie on both sides; each class is
divided by itself. Photographs are divided likewise. "unlabelled" scenes use what "train" may use.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

Split = Literal["unlabelled", "train", "val", "test"]
Side = Literal["train", "val", "test"]

SPLITS: tuple[Split, ...] = ("unlabelled", "train", "val", "test")
SHARES: Mapping[Side, float] = {"train": 0.55, "val": 0.15, "test": 0.30}
OTHER = -1
"""The label of cut-outs that are pasted but belong to no class."""


@dataclass(frozen=True, eq=False)
class Cutout:
    """An object on transparent ground.

    Attributes:
        name: Of the file.
        label: Index of its class, or `OTHER`.
        group: Cut-outs of one group go to one split.
        picture: RGBA.
    """

    name: str
    label: int
    group: str
    picture: Image.Image


@dataclass(frozen=True, eq=False)
class Photograph:
    """A background."""

    name: str
    picture: Image.Image


@dataclass(frozen=True, eq=False)
class Stock:
    """All material of a set; `classes` names the labels."""

    classes: tuple[str, ...]
    cutouts: Sequence[Cutout]
    photographs: Sequence[Photograph]

    def of(self, side: Side, seed: int) -> Stock:
        """Return what one side of the division may use."""
        cutout_sides = [
            divided([one.group for one in self.cutouts if one.label == label], (seed, 0, label + 1))
            for label in range(OTHER, len(self.classes))
        ]
        photograph_sides = divided([one.name for one in self.photographs], (seed, 1))
        return Stock(
            self.classes,
            [one for one in self.cutouts if cutout_sides[one.label + 1][one.group] == side],
            [one for one in self.photographs if photograph_sides[one.name] == side],
        )


def side_of(split: Split) -> Side:
    """Return the side whose objects and backgrounds a split shows."""
    return "train" if split == "unlabelled" else split


def divided(groups: Sequence[str], seed: tuple[int, ...]) -> dict[str, Side]:
    """Return the side of each group, so that the sides hold about their shares of the members.

    One group after the other, in random order, goes to the side that lacks most of its share.
    """
    sizes = {name: groups.count(name) for name in sorted(set(groups))}
    names = list(sizes)
    filled: dict[Side, float] = dict.fromkeys(SHARES, 0.0)
    sides: dict[str, Side] = {}
    for place in np.random.default_rng(seed).permutation(len(names)):
        side = min(filled, key=lambda one: filled[one] / SHARES[one])
        sides[names[place]] = side
        filled[side] += sizes[names[place]]
    return sides
