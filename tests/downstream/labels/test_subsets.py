"""Subsets are nested, seeded and balanced."""

from __future__ import annotations

import itertools
import time
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


def test_many_images_of_many_classes_are_ordered_in_seconds() -> None:
    labels = [[index % 2000] for index in range(100_000)]
    began = time.process_time()
    order = balanced_order(labels, 0)
    assert time.process_time() - began < 5
    assert set(Counter(labels[index][0] for index in order[:20_000]).values()) == {10}


def test_the_order_of_a_pass_is_kept_and_is_that_of_seed_and_pass() -> None:
    order = shuffled(30, 1, 2)
    assert shuffled(30, 1, 2) is order
    assert order.tolist() == np.random.default_rng((1, 0, 2)).permutation(30).tolist()
    assert [item_at(60 + index, count=30, seed=1) for index in range(30)] == order.tolist()
    assert order.tolist() != shuffled(30, 1, 3).tolist() != shuffled(30, 2, 3).tolist()
    with pytest.raises(ValueError, match="read-only"):
        order[0] = 1
