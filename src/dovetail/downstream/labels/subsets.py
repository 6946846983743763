"""Nested, seeded, class-balanced subsets of a labelled dataset, for evaluation with few labels."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from dovetail.errors import DataError
from dovetail.options import SHARE

HELD_OUT_SHARE = 0.2


def balanced_order(classes: Sequence[Sequence[int]], seed: int) -> list[int]:
    """Return all indices in an order of which every prefix is balanced over classes.

    The next image is always a random one of the class with the smallest fraction so far. So the first images cover all
    classes, and a prefix of n images has about n / N of every class. Prefixes are nested. Images without any class come
    last.

    Args:
        classes: Classes in each image: one label, or several for masks and boxes.
        seed: Seed of the order.
    """
    rng = np.random.default_rng((seed, 2))
    labels = sorted({label for one in classes for label in one})
    row = {label: index for index, label in enumerate(labels)}
    queues: list[list[int]] = [[] for _ in labels]
    shuffled = [int(index) for index in rng.permutation(len(classes))]
    for index in reversed(shuffled):  # popped from the end
        for label in set(classes[index]):
            queues[row[label]].append(index)
    totals, taken = [len(queue) for queue in queues], [0] * len(labels)
    tie_break = (rng.random(len(labels)) * 1e-9).tolist()
    # Fractions only grow: an outdated entry of the heap is put back. The cost per image is constant.
    heap = [(tie_break[chosen], chosen) for chosen in range(len(labels))]
    heapq.heapify(heap)
    done = np.zeros(len(classes), dtype=bool)
    order: list[int] = []
    while heap:
        noted, chosen = heap[0]
        share = taken[chosen] / totals[chosen] + tie_break[chosen]
        if not queues[chosen]:
            heapq.heappop(heap)
        elif noted < share:
            heapq.heapreplace(heap, (share, chosen))
        elif not done[index := queues[chosen].pop()]:
            done[index] = True
            order.append(index)
            for label in set(classes[index]):
                taken[row[label]] += 1
    return order + [index for index in shuffled if not done[index]]


@lru_cache(maxsize=4)
def shuffled(count: int, seed: int, turn: int) -> np.ndarray[Any, Any]:
    """Return the order [count] of items in an epoch. It is cached, since every image of the epoch needs it."""
    order = np.random.default_rng((seed, 0, turn)).permutation(count)
    order.flags.writeable = False
    return order


def item_at(place: int, *, count: int, seed: int) -> int:
    """Return the item at a position in the endless sequence of shuffled epochs over `count` items."""
    turn, offset = divmod(place, count)
    return int(shuffled(count, seed, turn)[offset])


def fraction_of(order: Sequence[int], fraction: float) -> list[int]:
    """Return the first `fraction` of an order (at least one index) in ascending order."""
    SHARE.check("fraction", fraction)
    return sorted(order[: max(round(fraction * len(order)), 1)])


def held_out(count: int) -> tuple[list[int], list[int]]:
    """Split `count` images into training images and a fixed fifth for validation."""
    if count < 2:
        raise DataError("A dataset needs at least two images for training and validation; add images.")
    order = np.random.default_rng(0).permutation(count)
    held = max(round(HELD_OUT_SHARE * count), 1)
    return sorted(order[held:].tolist()), sorted(order[:held].tolist())


def split_note(held: list[int], kept: list[int]) -> str:
    """Return a note on a split that the dataset does not have itself."""
    return f"The dataset has no validation part: {len(held)} of {len(held) + len(kept)} images are held out for it."
