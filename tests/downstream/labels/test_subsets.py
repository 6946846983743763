"""Subsets are nested, seeded and balanced."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.downstream.labels.subsets import balanced_order, fraction_of, item_at, shuffled
from dovetail.errors import DovetailError

LABELS = [[0]] * 60 + [[1]] * 30 + [[2]] * 10


def test_every_beginning_has_the_classes_in_proportion() -> None:
    order = balanced_order(LABELS, 0)
    assert {LABELS[index][0] for index in order[:3]} == {0, 1, 2}
    for count in (10, 20, 50):
        found = Counter(LABELS[index][0] for index in order[:count])
        assert abs(found[0] - 0.6 * count) <= 1
        assert abs(found[1] - 0.3 * count) <= 1
        assert abs(found[2] - 0.1 * count) <= 1


def test_fractions_are_nested_and_seeds_differ() -> None:
    order = balanced_order(LABELS, 0)
    subsets = [set(fraction_of(order, fraction)) for fraction in (0.001, 0.01, 0.1, 0.5, 1.0)]
    assert [len(one) for one in subsets] == [1, 1, 10, 50, 100]
    assert all(small <= large for small, large in itertools.pairwise(subsets))
    assert balanced_order(LABELS, 0) == order
    assert balanced_order(LABELS, 1) != order


@given(st.lists(st.lists(st.integers(0, 4), max_size=3), max_size=30), st.integers(0, 5))
def test_an_order_is_a_permutation_whatever_the_classes(classes: list[list[int]], seed: int) -> None:
    assert sorted(balanced_order(classes, seed)) == list(range(len(classes)))


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.5])
def test_fractions_out_of_range_are_refused(fraction: float) -> None:
    with pytest.raises(DovetailError, match="fraction is"):
        fraction_of([0, 1], fraction)


def test_the_work_for_an_image_does_not_grow_with_the_number_of_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted on the heap, which is all that is looked through for the next image."""
    looks: list[int] = []
    replaced = heapq.heapreplace
    monkeypatch.setattr(heapq, "heapreplace", lambda heap, item: looks.append(1) or replaced(heap, item))
    each = []
    for classes in (20, 200):
        labels = [[index % classes] for index in range(10 * classes)]
        looks.clear()
        order = balanced_order(labels, 0)
        each.append(len(looks) / len(labels))
        assert set(Counter(labels[index][0] for index in order[: 2 * classes]).values()) == {2}
    assert each[0] == pytest.approx(each[1], rel=0.2)
    assert 0 < max(each) <= 2


def test_the_order_of_a_pass_is_kept_and_is_that_of_seed_and_pass() -> None:
    order = shuffled(30, 1, 2)
    assert shuffled(30, 1, 2) is order
    assert order.tolist() == np.random.default_rng((1, 0, 2)).permutation(30).tolist()
    assert [item_at(60 + index, count=30, seed=1) for index in range(30)] == order.tolist()
    assert order.tolist() != shuffled(30, 1, 3).tolist() != shuffled(30, 2, 3).tolist()
    with pytest.raises(ValueError, match="read-only"):
        order[0] = 1
