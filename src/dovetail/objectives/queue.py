"""A queue of keys: the negatives of earlier batches (MoCo, arXiv 1911.05722, section 3.2).

Shapes: B keys, D of the embedding, K length of the queue.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dovetail.distributed import gather
from dovetail.errors import OptionsError


class Queue(nn.Module):
    """A ring buffer `vectors` [D, K] of unit columns, oldest first from `pointer` [1] on; random until overwritten.

    The batch size does not need to divide the length: a batch that reaches the end continues at the start. With
    `reference_dropped_surplus`, keys beyond the end are dropped as in lightly's memory bank, so the oldest keys stay
    longer and some images are never negatives.
    """

    vectors: Tensor
    pointer: Tensor

    def __init__(self, dim: int, length: int, *, reference_dropped_surplus: bool = False) -> None:
        super().__init__()
        self.reference_dropped_surplus = reference_dropped_surplus
        if length < 1:
            raise OptionsError(f"The length of the queue is {length}; it must be at least 1.")
        self.register_buffer("vectors", F.normalize(torch.randn(dim, length), dim=0))
        self.register_buffer("pointer", torch.zeros(1, dtype=torch.int64))

    def negatives(self) -> Tensor:
        """Return a copy of `vectors`, so that `push` may be called before the backward pass."""
        return self.vectors.clone()

    @torch.no_grad()
    def push(self, keys: Tensor) -> None:
        """Overwrite the oldest columns with `keys` [B, D] of all ranks in rank order; stores only the last K."""
        length = self.vectors.shape[1]
        keys = gather(keys.detach()).to(self.vectors.dtype)  # [ranks * B, D]
        if self.reference_dropped_surplus:
            keys = keys[: length - int(self.pointer)]
        kept = keys[-length:]
        start = self.pointer + (len(keys) - len(kept))
        columns = (start + torch.arange(len(kept), device=start.device)) % length
        self.vectors.index_copy_(1, columns, kept.T)
        self.pointer.add_(len(keys)).remainder_(length)
