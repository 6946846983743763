"""Retrieval of labels: a cell takes the labels of the cells of a memory bank that are nearest to it.

    s_i = <q, k_i> / (|q| |k_i|),    y = sum_{i in nearest k} softmax_i(s_i / tau) y_i

The k nearest are exact. Class shares are resized to the masks bilinearly, then the largest is taken.

Source: in-context scene understanding, Balazevic et al. 2023 ("Hummingbird"), https://arxiv.org/abs/2306.01667, section
3, as CrIBo (https://arxiv.org/abs/2310.07855) and NeCo (https://arxiv.org/abs/2408.11054) use it: k = 30, tau = 0.02,
and a bank that prefers cells of classes which are rare in their image. Theirs holds some 10 million cells of augmented
512-pixel images, found approximately; here it holds 20,000 of images without augmentation, unless more are asked for.
Pixels that do not count are left out of the bank, where the published code counts them as the first class.

Shapes: M cells in the bank, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from dovetail.downstream.dense.cells import Pool
from dovetail.downstream.dense.options import DenseOptions
from dovetail.downstream.probe.knn import nearest


@dataclass(frozen=True)
class Bank:
    """Labelled cells: `keys` [M, C] of unit length, `shares` [M, K] whose rows sum to 1."""

    keys: Tensor
    shares: Tensor
    k: int
    temperature: float

    def class_maps(self, maps: Tensor) -> Tensor:
        """Return shares of classes [B, K, h, w] for maps [B, C, h, w]."""
        batch, _, height, width = maps.shape
        queries = F.normalize(maps.permute(0, 2, 3, 1).flatten(0, 2), dim=1)
        found = [
            (self.shares[index] * (similarity / self.temperature).softmax(1)[..., None]).sum(1)
            for similarity, index in nearest(queries, self.keys, self.k)
        ]
        return torch.cat(found).view(batch, height, width, -1).permute(0, 3, 1, 2)


def build_bank(pool: Pool, images: Sequence[int], *, options: DenseOptions) -> Bank:
    """Return the bank of the cells of `images`; k is lowered to the number of cells where there are fewer."""
    cells, shares = pool.taken(images, options.memory)
    keys = F.normalize(cells.float(), dim=1)
    return Bank(keys, shares / shares.sum(1, keepdim=True), min(options.k, len(keys)), options.temperature)
