"""Cells of feature maps with soft labels, and sampling of cells.

The label of a cell is the fraction of its pixels in each class. Ignored pixels reduce the sum of the fractions, and
cells without labelled pixels are skipped.

Shapes: h x w cells, H x W pixels, K classes, C channels, n cells of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from dovetail.errors import DataError


def cell_shares(mask: Tensor, grid: tuple[int, int], *, classes: int, ignore_index: int) -> Tensor:
    """Return the fraction of each class in the pixels of every cell, [h * w, K] float32, row by row.

    A pixel belongs to the cell that contains its centre.

    Args:
        mask: Mask [H, W] int64, at least as large as the grid.
        grid: Height h and width w of the grid.
        classes: Number of classes K.
        ignore_index: Label of ignored pixels.

    Raises:
        DataError: The mask is smaller than the grid, or contains an invalid label.
    """
    (height, width), (rows, columns) = mask.shape, grid
    if height < rows or width < columns:
        raise DataError(
            f"The mask has {height}x{width} pixels, but the map has {rows}x{columns} cells; use a larger mask."
        )
    wrong = mask[((mask < 0) | (mask >= classes)) & (mask != ignore_index)]
    if wrong.numel():
        raise DataError(
            f"A mask contains label {int(wrong[0])}, but there are {classes} classes; correct the number of classes."
        )
    row = torch.arange(height, device=mask.device).mul(2).add(1).mul(rows).div(2 * height, rounding_mode="floor")
    column = torch.arange(width, device=mask.device).mul(2).add(1).mul(columns).div(2 * width, rounding_mode="floor")
    cell = row[:, None] * columns + column[None, :]
    kept = mask != ignore_index
    pixels = torch.bincount(cell.flatten(), minlength=rows * columns)
    counts = torch.bincount(cell[kept] * classes + mask[kept], minlength=rows * columns * classes)
    return counts.view(rows * columns, classes) / pixels[:, None]


def as_cells(maps: Tensor) -> Tensor:
    """Convert the map [C, h, w] of an image to cells [h * w, C], row by row."""
    return maps.flatten(1).T


@dataclass
class Pool:
    """Sampled cells of training images, from which the cells of every subset can be selected.

    Attributes:
        quota: Largest number of cells that any subset needs from each image.
        features: Features [n, C] of each image.
        shares: Class fractions [n, K] of each image.
    """

    quota: Sequence[int]
    features: list[Tensor] = field(default_factory=list)
    shares: list[Tensor] = field(default_factory=list)

    def add(self, cells: Tensor, shares: Tensor, order: Tensor) -> None:
        """Add an image: cells [n, C], class fractions [n, K], and the cell indices in order of preference."""
        chosen = order[: self.quota[len(self.features)]]
        self.features.append(cells[chosen].clone())
        self.shares.append(shares[chosen].clone())

    def taken(self, images: Sequence[int], most: int) -> tuple[Tensor, Tensor]:
        """Return up to `most` cells [n, C] and class fractions [n, K], spread evenly over `images`.

        Raises:
            DataError: None of the images has a labelled pixel.
        """
        each = max(most // len(images), 1)
        features = torch.cat([self.features[index][:each] for index in images])
        if not len(features):
            raise DataError("The masks of the labelled training images contain no labelled pixels; check them.")
        return features, torch.cat([self.shares[index][:each] for index in images])


def quotas(subsets: Sequence[Sequence[int]], most: int, images: int) -> list[int]:
    """Return how many cells of each image to keep, so that every subset has up to `most` cells in total."""
    found = [0] * images
    for subset in subsets:
        for index in subset:
            found[index] = max(found[index], max(most // len(subset), 1))
    return found


def uniform_order(shares: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the indices of labelled cells in random order, for class fractions [n, K]."""
    labelled = (shares.sum(1) > 0).nonzero().flatten()
    return labelled[torch.from_numpy(rng.permutation(len(labelled))).to(shares.device)]


def rare_first_order(shares: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the indices of labelled cells in a random order that prefers classes which are rare in the image.

    Cells are sorted by u * s, where u is uniform in [0, 1) and s is the number of cells in the image that share a class
    with the cell, summed over its classes. This is how the open reproduction of Hummingbird samples its memory bank
    (https://github.com/vpariza/open-hummingbird-eval).
    """
    labelled = (shares.sum(1) > 0).nonzero().flatten()
    present = (shares[labelled] > 0).float()
    scores = present @ present.sum(0)
    uniform = torch.from_numpy(rng.random(len(labelled))).to(scores)
    return labelled[(scores * uniform).argsort()]
