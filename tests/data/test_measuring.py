"""Mean and deviation of each channel, measured."""

from __future__ import annotations

import numpy as np
import pytest

from dovetail.data.measuring import LEAST, measured
from dovetail.data.open import open_source
from dovetail.data.reading.values import values_within


def test_each_channel_by_itself() -> None:
    rng = np.random.default_rng(0)
    scale = np.array([3000, 300, 0, 1500])
    arrays = [(rng.random((40, 50, 4)) * scale).astype(np.uint16) for _ in range(6)]
    with values_within([0, 3000]):
        found = measured(open_source(arrays), 4, seed=0)
    assert found is not None
    assert found[0] == pytest.approx([0.5, 0.05, 0.0, 0.25], abs=0.01)
    assert found[1] == pytest.approx([0.289, 0.0289, LEAST, 0.144], abs=0.005)


def test_images_that_cannot_be_read_are_left_out() -> None:
    good, other = np.full((8, 8, 2), 51, dtype=np.uint8), np.zeros((8, 8, 5), dtype=np.uint8)
    assert measured(open_source([good, other]), 2, seed=0) == ((0.2, 0.2), (LEAST, LEAST))
    assert measured(open_source([other]), 2, seed=0) is None
