"""Soft labels of cells, and samples of cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dovetail.downstream.dense.cells import Pool, cell_shares, quotas, rare_first_order, uniform_order
from dovetail.errors import DovetailError


def test_shares_are_those_of_the_pixels_of_each_cell() -> None:
    mask = torch.tensor([[0, 0, 1, 255], [0, 2, 1, 255], [2, 2, 255, 255], [2, 2, 255, 255]])
    shares = cell_shares(mask, (2, 2), classes=3, ignore_index=255)
    expected = [[0.75, 0, 0.25], [0, 0.5, 0], [0, 0, 1], [0, 0, 0]]
    assert torch.equal(shares, torch.tensor(expected))


def test_cells_of_uneven_size_share_all_pixels_by_their_centres() -> None:
    mask = torch.randint(0, 4, (7, 10), generator=torch.Generator().manual_seed(0))
    rows = (np.arange(7) + 0.5) * 3 // 7
    columns = (np.arange(10) + 0.5) * 4 // 10
    shares = cell_shares(mask, (3, 4), classes=4, ignore_index=255)
    for cell in range(12):
        inside = mask.numpy()[np.ix_(rows == cell // 4, columns == cell % 4)]
        expected = [(inside == label).mean() for label in range(4)]
        assert shares[cell].numpy() == pytest.approx(expected)


def test_refusals() -> None:
    with pytest.raises(DovetailError, match="label 7, but there are 3 classes"):
        cell_shares(torch.full((4, 4), 7), (2, 2), classes=3, ignore_index=255)
    with pytest.raises(DovetailError, match="use a larger mask"):
        cell_shares(torch.zeros(2, 2, dtype=torch.int64), (4, 4), classes=3, ignore_index=255)
    pool = Pool([4])
    pool.add(torch.ones(2, 3), torch.zeros(2, 2), torch.tensor([], dtype=torch.int64))
    with pytest.raises(DovetailError, match="no labelled pixels"):
        pool.taken([0], 10)


def test_orders_leave_out_unlabelled_cells_and_rare_classes_come_first() -> None:
    shares = torch.zeros(100, 2)
    shares[:90, 0], shares[90:98, 1] = 1.0, 1.0  # two cells without a label
    for order in (uniform_order, rare_first_order):
        assert sorted(order(shares, np.random.default_rng(0)).tolist()) == list(range(98))
    firsts = [rare_first_order(shares, np.random.default_rng(seed))[:8] for seed in range(20)]
    assert (torch.cat(firsts) >= 90).float().mean() > 0.35  # about half, though they are eight of 98 cells
    evenly = [uniform_order(shares, np.random.default_rng(seed))[:8] for seed in range(20)]
    assert (torch.cat(evenly) >= 90).float().mean() < 0.2


def test_a_pool_serves_subsets_of_any_size() -> None:
    subsets = [[2, 0], [2, 0, 1, 3]]
    quota = quotas(subsets, 8, 5)
    assert quota == [4, 2, 4, 2, 0]
    pool = Pool(quota)
    for image in range(5):
        cells = torch.full((6, 1), float(image)) + torch.arange(6)[:, None] / 10
        pool.add(cells, torch.ones(6, 1), torch.arange(6))
    few, _ = pool.taken(subsets[0], 8)
    many, _ = pool.taken(subsets[1], 8)
    assert few.flatten().tolist() == pytest.approx([2.0, 2.1, 2.2, 2.3, 0.0, 0.1, 0.2, 0.3])
    assert many.flatten().tolist() == pytest.approx([2.0, 2.1, 0.0, 0.1, 1.0, 1.1, 3.0, 3.1])
