from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.views.masks import block_mask, draw_mask, random_mask
from dovetail.views.plan import MaskSpec


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 20), st.floats(0, 1))
def test_block_mask_never_exceeds_its_count(seed: int, height: int, width: int, share: float) -> None:
    count = int(share * height * width)
    mask = block_mask(generator(seed), height=height, width=width, count=count)
    assert mask.shape == (height, width)
    assert mask.sum() <= count


def test_block_mask_comes_close_to_its_count_in_connected_pieces() -> None:
    shares, neighbours = [], []
    for seed in range(50):
        mask = block_mask(generator(seed), height=14, width=14, count=59)
        shares.append(mask.sum() / 59)
        beside = mask[:, 1:][mask[:, :-1]].mean()
        neighbours.append(beside)
    assert np.mean(shares) > 0.95
    assert np.mean(neighbours) > 0.6  # 0.3 for patches chosen one by one


@given(st.integers(0, 10**6), st.integers(1, 20), st.integers(1, 20), st.floats(0, 1))
def test_random_mask_has_exactly_its_count(seed: int, height: int, width: int, share: float) -> None:
    count = int(share * height * width)
    assert random_mask(generator(seed), height=height, width=width, count=count).sum() == count


@pytest.mark.parametrize("shape", ["block", "random"])
def test_shares_follow_the_spec(shape: str) -> None:
    spec = MaskSpec(share=(0.1, 0.5), p=0.5, shape=shape)  # type: ignore[arg-type]
    rng = generator(0)
    shares = np.array([draw_mask(rng, spec, height=14, width=14).mean() for _ in range(400)])
    assert 0.42 < (shares > 0).mean() < 0.58
    masked = shares[shares > 0]
    assert masked.max() <= 0.5
    assert 0.26 < masked.mean() < 0.33
