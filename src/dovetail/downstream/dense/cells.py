"""Cells of maps with soft labels, and samples of them.

A cell's label is the share of its pixels that each class covers; pixels that do not count lower the sum of the shares,
and cells without any pixel that counts are left out.

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
    """Return the share of each class in the pixels of every cell, [h * w, K] float32, row by row.

    A pixel belongs to the cell that its centre lies in.

    Args:
        mask: [H, W] int64, at least as large as the grid.
        grid: h, w.
        classes: K.
        ignore_index: The label of pixels that do not count.

    Raises:
        DataError: For a mask that is smaller than the grid, or a label that is neither a class nor ignored.
    """
    (height, width), (rows, columns) = mask.shape, grid
    if height < rows or width < columns:
        raise DataError(f"The mask has {height}x{width} pixels, the map {rows}x{columns} cells; give a larger mask.")
    wrong = mask[((mask < 0) | (mask >= classes)) & (mask != ignore_index)]
    if wrong.numel():
        raise DataError(
            f"A mask holds label {int(wrong[0])}, but there are {classes} classes; give the right number of classes."
        )
    row = torch.arange(height, device=mask.device).mul(2).add(1).mul(rows).div(2 * height, rounding_mode="floor")
    column = torch.arange(width, device=mask.device).mul(2).add(1).mul(columns).div(2 * width, rounding_mode="floor")
    cell = row[:, None] * columns + column[None, :]
    kept = mask != ignore_index
    pixels = torch.bincount(cell.flatten(), minlength=rows * columns)
    counts = torch.bincount(cell[kept] * classes + mask[kept], minlength=rows * columns * classes)
    return counts.view(rows * columns, classes) / pixels[:, None]


def as_cells(maps: Tensor) -> Tensor:
    """Return one image's map [C, h, w] as cells [h * w, C], row by row."""
    return maps.flatten(1).T


@dataclass
class Pool:
    """Sampled cells of training images, so kept that those of every subset can be taken from it.

    Attributes:
        quota: The most cells of each image that any subset takes.
        features: [n, C] of each image.
        shares: [n, K] of each image.
    """

    quota: Sequence[int]
    features: list[Tensor] = field(default_factory=list)
    shares: list[Tensor] = field(default_factory=list)

    def add(self, cells: Tensor, shares: Tensor, order: Tensor) -> None:
        """Add the next image: cells [n, C], shares [n, K], and the indices of those wanted first."""
        chosen = order[: self.quota[len(self.features)]]
        self.features.append(cells[chosen].clone())
        self.shares.append(shares[chosen].clone())

    def taken(self, images: Sequence[int], most: int) -> tuple[Tensor, Tensor]:
        """Return the cells [n, C] and shares [n, K] of `images`, `most` in all at most, spread evenly over them.

        Raises:
            DataError: Where none of these images has a labelled pixel.
        """
        each = max(most // len(images), 1)
        features = torch.cat([self.features[index][:each] for index in images])
        if not len(features):
            raise DataError("The labelled training images hold no pixel that counts; check their masks.")
        return features, torch.cat([self.shares[index][:each] for index in images])


def quotas(subsets: Sequence[Sequence[int]], most: int, images: int) -> list[int]:
    """Return how many cells of each image must be kept, for every subset to have `most` cells in all at most."""
    found = [0] * images
    for subset in subsets:
        for index in subset:
            found[index] = max(found[index], max(most // len(subset), 1))
    return found


def uniform_order(shares: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the indices of labelled cells in a random order; shares are [n, K]."""
    labelled = (shares.sum(1) > 0).nonzero().flatten()
    return labelled[torch.from_numpy(rng.permutation(len(labelled))).to(shares.device)]


def rare_first_order(shares: Tensor, rng: np.random.Generator) -> Tensor:
    """Return the indices of labelled cells in a random order that prefers classes which are rare in the image.

    A cell's rank is u * s, u uniform in [0, 1) and s the sum over the classes in it of the number of the image's cells
    with that class, the least rank first, as Hummingbird's open reproduction samples its bank
    (https://github.com/vpariza/open-hummingbird-eval).
    """
    labelled = (shares.sum(1) > 0).nonzero().flatten()
    present = (shares[labelled] > 0).float()
    scores = present @ present.sum(0)
    uniform = torch.from_numpy(rng.random(len(labelled))).to(scores)
    return labelled[(scores * uniform).argsort()]
