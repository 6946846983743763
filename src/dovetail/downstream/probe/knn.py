"""Weighted k-nearest-neighbour classification of frozen features.

The k nearest training images of a test image by cosine similarity s_i vote for their classes with weights

    w_i = exp(s_i / tau),    class = argmax_c sum_{i in nearest k, y_i = c} w_i

Source: Wu et al., "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", 2018,
https://arxiv.org/abs/1805.01978, section 3.4; tau = 0.07.

Shapes: Q queries, N bank entries, D channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dovetail.errors import OptionsError

QUERY_CHUNK = 256
BANK_CHUNK = 65_536


def pieces(values: Tensor, size: int) -> Iterator[Tensor]:
    """Yield `values` [N, ...] in parts of up to `size` along the first dimension."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


def nearest(
    queries: Tensor, bank: Tensor, k: int, *, query_chunk: int = QUERY_CHUNK, bank_chunk: int = BANK_CHUNK
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (similarities [q, k] in descending order, indices [q, k]) of the nearest entries for chunks of queries.

    At most query_chunk x bank_chunk similarities are in memory.
    """
    for chunk in pieces(queries, query_chunk):
        best = chunk.new_full((len(chunk), 0), 0.0)
        where = torch.empty(len(chunk), 0, dtype=torch.int64, device=chunk.device)
        for start in range(0, len(bank), bank_chunk):
            block = chunk @ bank[start : start + bank_chunk].T  # [q, n]
            values, indices = block.topk(min(k, block.shape[1]), dim=1)
            best, where = torch.cat([best, values], 1), torch.cat([where, indices + start], 1)
            best, kept = best.topk(min(k, best.shape[1]), dim=1)
            where = where.gather(1, kept)
        yield best, where


def knn_predictions(
    queries: Tensor,
    bank: Tensor,
    labels: Tensor,
    *,
    classes: int,
    k: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    query_chunk: int = QUERY_CHUNK,
    bank_chunk: int = BANK_CHUNK,
    on_batch: Callable[[int], None] | None = None,
) -> dict[int, Tensor]:
    """Return the predicted class [Q] of every query, for each k.

    Args:
        queries: Features [Q, D], not necessarily normalised.
        bank: Features [N, D].
        labels: Classes [N] int64 of the bank.
        classes: Number of classes K.
        k: Numbers of neighbours, each at most N.
        temperature: Temperature tau.
        query_chunk: Number of queries to compare at once.
        bank_chunk: Number of bank entries to compare at once.
        on_batch: Called after each chunk with the number of queries.

    Raises:
        OptionsError: k is below 1 or above N, or the temperature is not positive.
    """
    if not k or min(k) < 1 or max(k) > len(bank):
        raise OptionsError(f"k expects numbers from 1 to {len(bank)} (the number of training images), got {list(k)}.")
    if temperature <= 0:
        raise OptionsError(f"temperature expects a positive number, got {temperature:g}.")
    queries, bank = F.normalize(queries.float(), dim=1), F.normalize(bank.float(), dim=1)
    found: dict[int, list[Tensor]] = {one: [] for one in k}
    for similarity, index in nearest(queries, bank, max(k), query_chunk=query_chunk, bank_chunk=bank_chunk):
        # Subtracting the maximum keeps the exponential finite and does not change the vote.
        weight = ((similarity - similarity[:, :1]) / temperature).exp()
        voted = labels[index]
        for one in k:
            votes = weight.new_zeros(len(weight), classes).scatter_add_(1, voted[:, :one], weight[:, :one])
            found[one].append(votes.argmax(1))
        if on_batch is not None:
            on_batch(len(index))
    return {one: torch.cat(parts) for one, parts in found.items()}
