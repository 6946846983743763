"""Label retrieval: a cell gets the labels of its nearest cells in a memory bank.

    s_i = <q, k_i> / (|q| |k_i|),    y = sum_{i in nearest k} softmax_i(s_i / tau) y_i

The k nearest cells are exact. Class fractions are resized to the masks bilinearly, and the largest one is used.

Source: in-context scene understanding, Balazevic et al. 2023 ("Hummingbird"), https://arxiv.org/abs/2306.01667, section
3, as CrIBo (https://arxiv.org/abs/2310.07855) and NeCo (https://arxiv.org/abs/2408.11054) use it: k = 30, tau = 0.02,
and a bank that prefers cells of classes which are rare in their image. Departures: the published bank has about
10 million cells of augmented 512-pixel images with approximate search, while the default here is 20,000 cells of images
without augmentation. Ignored pixels are not in the bank, while the published code counts them as the first class.

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
        """Return class fractions [B, K, h, w] for maps [B, C, h, w]."""
        batch, _, height, width = maps.shape
        queries = F.normalize(maps.permute(0, 2, 3, 1).flatten(0, 2), dim=1)
        found = [
            (self.shares[index] * (similarity / self.temperature).softmax(1)[..., None]).sum(1)
            for similarity, index in nearest(queries, self.keys, self.k)
        ]
        return torch.cat(found).view(batch, height, width, -1).permute(0, 3, 1, 2)


def build_bank(pool: Pool, images: Sequence[int], *, options: DenseOptions) -> Bank:
    """Return the memory bank of the cells of `images`. k is reduced if there are fewer cells."""
    cells, shares = pool.taken(images, options.memory)
    keys = F.normalize(cells.float(), dim=1)
    return Bank(keys, shares / shares.sum(1, keepdim=True), min(options.k, len(keys)), options.temperature)
