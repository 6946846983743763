from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dovetail.data.order import ShardOrder, StepSampler, epoch_order
from dovetail.errors import DovetailError


@given(st.integers(1, 300), st.integers(0, 2**63), st.integers(0, 1000))
def test_order_is_a_pure_permutation(num_images: int, seed: int, epoch: int) -> None:
    order = epoch_order(num_images, seed=seed, epoch=epoch)
    assert sorted(order) == list(range(num_images))
    assert (order == epoch_order(num_images, seed=seed, epoch=epoch)).all()


def test_epochs_and_seeds_differ() -> None:
    orders = {tuple(epoch_order(50, seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)}
    assert len(orders) == 9


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 20))
def test_resuming_goes_on_where_it_stopped(num_images: int, batch: int, start: int) -> None:
    batch = min(batch, num_images)
    whole = list(StepSampler(num_images, batch, seed=1, total_steps=20))
    rest = StepSampler(num_images, batch, seed=1, total_steps=20, start_step=start)
    assert list(rest) == whole[start:]
    assert len(rest) == 20 - start


@pytest.mark.parametrize(("world_size", "micro_batches"), [(1, 1), (2, 1), (4, 1), (1, 4), (2, 2), (2, 4)])
def test_ranks_and_micro_batches_share_the_same_global_batches(world_size: int, micro_batches: int) -> None:
    expected = list(StepSampler(37, 8, seed=5, total_steps=9))
    samplers = [
        StepSampler(37, 8, seed=5, total_steps=9, rank=rank, world_size=world_size, micro_batches=micro_batches)
        for rank in range(world_size)
    ]
    parts = [list(sampler) for sampler in samplers]
    for step in range(9):
        seen = [
            key for part in parts for micro in part[step * micro_batches : (step + 1) * micro_batches] for key in micro
        ]
        assert seen == expected[step]
    assert len(samplers[0]) == len(parts[0]) == 9 * micro_batches


def test_what_does_not_fill_a_batch_is_left_out() -> None:
    sampler = StepSampler(10, 4, seed=0, total_steps=4)
    assert sampler.steps_per_epoch == 2
    epochs = [[epoch for epoch, _ in step] for step in sampler]
    assert epochs == [[0] * 4, [0] * 4, [1] * 4, [1] * 4]
    first_epoch = [index for step in list(sampler)[:2] for _, index in step]
    assert len(set(first_epoch)) == 8


def test_too_few_images() -> None:
    with pytest.raises(DovetailError, match="7 images, but a batch needs 8; use --batch-size 7 or more images"):
        StepSampler(7, 8, seed=0, total_steps=1)


def test_batch_that_does_not_divide() -> None:
    with pytest.raises(DovetailError, match="10 is not divisible by 4 devices; use --batch-size 8"):
        StepSampler(20, 10, seed=0, total_steps=1, world_size=4)
    with pytest.raises(DovetailError, match="use --batch-size 4"):
        StepSampler(20, 3, seed=0, total_steps=1, world_size=2, micro_batches=2)


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=12),
    st.integers(0, 2**63),
    st.integers(0, 1000),
    st.integers(1, 60),
    st.data(),
)
def test_the_order_of_shards_is_a_permutation_that_any_part_gives(
    counts: list[int], seed: int, epoch: int, window: int, data: st.DataObject
) -> None:
    whole = ShardOrder(np.array(counts), seed=seed, epoch=epoch, window_images=window)[:]
    assert sorted(whole) == list(range(sum(counts)))
    first = data.draw(st.integers(0, sum(counts)))
    last = data.draw(st.integers(first, sum(counts)))
    part = ShardOrder(np.array(counts), seed=seed, epoch=epoch, window_images=window)[first:last]
    assert part.tolist() == whole[first:last].tolist()
