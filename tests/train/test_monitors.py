"""Monitors: rank, spread, content of maps, collapse in words, numbers that are not finite."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from dovetail.errors import DovetailError
from dovetail.objectives.objective import Loss
from dovetail.train.content import map_content
from dovetail.train.monitors import (
    MAX_POSITION,
    MIN_WITHIN,
    PATIENCE,
    CollapseWatch,
    ContentWatch,
    FiniteGuard,
    Health,
    TapWatch,
    effective_rank,
    pooled,
    spread,
)


def features(rank: int, *, samples: int = 64, width: int = 32, seed: int = 0) -> Tensor:
    """Return [N, C] of `rank` equal orthogonal directions."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(samples, rank + 1, generator=generator) + 0.0)[0]
    ones = torch.ones(samples, 1, dtype=left.dtype)
    left = torch.linalg.qr(torch.cat([ones, left[:, :rank]], dim=1))[0][:, 1:]  # orthogonal to a constant
    right = torch.linalg.qr(torch.randn(width, rank, generator=generator))[0]
    return left @ right.T + 3.0


@pytest.mark.parametrize("rank", [1, 5, 20])
def test_effective_rank_counts_equal_directions(rank: int) -> None:
    assert float(effective_rank(features(rank))) == pytest.approx(rank, rel=1e-3)


def test_effective_rank_is_between_the_counts_for_unequal_directions() -> None:
    values = torch.diag(torch.tensor([1.0, 1.0, 1e-3]))
    values = torch.cat([values, -values])
    assert 2.0 < float(effective_rank(values)) < 2.1


def test_spread_is_one_for_even_directions_and_zero_for_one() -> None:
    even = torch.randn(4000, 16, generator=torch.Generator().manual_seed(0))
    assert float(spread(even)) == pytest.approx(1.0, abs=0.02)
    assert float(spread(torch.ones(10, 16))) == pytest.approx(0.0, abs=1e-6)
    assert float(spread(5 * even)) == pytest.approx(float(spread(even)))


def test_equal_features_have_no_rank_beyond_one() -> None:
    assert float(effective_rank(torch.ones(10, 4))) == pytest.approx(1.0)


def test_maps_and_tokens_are_averaged_over_positions() -> None:
    maps = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(pooled(maps), maps.flatten(2).mean(2))
    torch.testing.assert_close(pooled(maps.flatten(2).transpose(1, 2)), pooled(maps))
    assert pooled(maps[:, :, 0, 0]).shape == (2, 3)


class Taps(nn.Module):
    """A network of two taps."""

    def forward(self, value: Tensor) -> dict[str, Tensor]:
        return {"c5": value, "flat": torch.ones_like(value)}


def test_taps_are_taken_from_the_first_pass_only_while_watching() -> None:
    network, watch = Taps(), TapWatch(most=16)
    first, second = torch.randn(20, 8, 2, 2), torch.zeros(20, 8, 2, 2)
    with watch.watching(network):
        network(first)
        network(second)
    network(second)
    health = watch.read()
    assert set(health) == {"c5", "flat"}
    assert health["c5"].rank == pytest.approx(float(effective_rank(pooled(first[:16]))))
    assert health["flat"].spread == pytest.approx(0.0, abs=1e-6)


def test_content_is_read_from_the_same_maps() -> None:
    network, watch = Taps(), TapWatch(most=16)
    first = torch.randn(20, 8, 4, 4)
    with watch.watching(network):
        network(first)
        network(torch.zeros(20, 8, 4, 4))
    content = watch.content()
    expected = map_content(first[:16])
    assert content["c5"] == (float(expected.within), float(expected.position))
    assert content["flat"] == (0.0, 0.0)
    with watch.watching(network):
        network(torch.full((20, 8, 4, 4), math.inf))
    assert set(watch.content()) == {"flat"}


def test_too_few_samples_give_no_reading() -> None:
    watch, network = TapWatch(), Taps()
    with watch.watching(network):
        network(torch.randn(7, 8, 2, 2))
    assert watch.read() == {}
    assert watch.content() == {}


@pytest.mark.parametrize("low", [Health(1.2, 0.5), Health(20.0, 0.001)])
def test_collapse_is_said_once_in_words_after_several_readings(low: Health) -> None:
    watch = CollapseWatch()
    healthy = Health(20.0, 0.5)
    said = [watch.warnings({"c5": low, "p2": healthy}) for _ in range(PATIENCE + 2)]
    assert [len(sentences) for sentences in said] == [0] * (PATIENCE - 1) + [1, 0, 0]
    sentence = said[PATIENCE - 1][0]
    assert "c5 are collapsing" in sentence
    assert "learning rate" in sentence
    assert watch.collapsed == ["c5"]
    assert watch.warnings({"c5": healthy, "p2": healthy}) == []
    assert watch.collapsed == []


def test_one_good_reading_starts_the_count_again() -> None:
    watch = CollapseWatch()
    low, healthy = Health(1.0, 0.5), Health(9.0, 0.5)
    for health in [low] * (PATIENCE - 1) + [healthy] + [low] * (PATIENCE - 1):
        assert watch.warnings({"c5": health}) == []


@pytest.mark.parametrize(
    ("within", "position", "said"),
    [(MIN_WITHIN / 2, 0.1, "p2 are nearly alike within each image"), (0.5, 0.9, "p2 tell where they lie")],
)
def test_maps_without_content_are_said_once_after_several_readings(within: float, position: float, said: str) -> None:
    watch = ContentWatch()
    sentences = [
        watch.warnings({"p2": within, "c5": 0.5}, {"p2": position, "c5": MAX_POSITION}, share_done=0.5)
        for _ in range(PATIENCE + 2)
    ]
    assert [len(one) for one in sentences] == [0] * (PATIENCE - 1) + [1, 0, 0]
    assert said in sentences[PATIENCE - 1][0]


def test_nothing_is_said_of_maps_at_the_start_and_a_good_reading_starts_the_count_again() -> None:
    watch = ContentWatch()
    for _ in range(2 * PATIENCE):
        assert watch.warnings({"p2": 0.0}, {"p2": 1.0}, share_done=0.05) == []
    for position in [0.9] * (PATIENCE - 1) + [0.1] + [0.9] * (PATIENCE - 1):
        assert watch.warnings({"p2": 0.5}, {"p2": position}, share_done=0.5) == []


def loss(total: float, part: float) -> Loss:
    return Loss(torch.tensor(total), {"encoder/group": torch.tensor(part), "encoder/slot": torch.tensor(1.0)})


@pytest.mark.parametrize(
    ("total", "part", "norm", "named"),
    [
        (math.nan, math.nan, 1.0, "encoder/group"),
        (math.inf, 2.0, math.nan, "the loss, the gradient"),
        (1.0, 2.0, math.inf, "the gradient"),
    ],
)
def test_the_guard_names_what_is_not_finite(total: float, part: float, norm: float, named: str) -> None:
    with pytest.raises(DovetailError, match=rf"step 12: {named} \(learning rate 0.25\)"):
        FiniteGuard().watch(loss(total, part), torch.tensor(norm), step=12, lr=0.25)


def test_the_guard_lets_numbers_pass() -> None:
    guard = FiniteGuard()
    guard.watch(loss(1.0, 2.0), torch.tensor(3.0), step=1, lr=0.1)
    guard.settle()
