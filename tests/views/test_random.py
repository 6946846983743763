from __future__ import annotations

import pytest

from dovetail.views.random import Purpose, stream


def numbers(purpose: Purpose = Purpose.VIEWS, seed: int = 0, epoch: int = 0, index: int = 0) -> list[float]:
    return list(stream(purpose, seed=seed, epoch=epoch, index=index).random(4))


def test_is_a_pure_function() -> None:
    assert numbers(seed=7, epoch=3, index=11) == numbers(seed=7, epoch=3, index=11)


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"index": 1}, {"purpose": Purpose.ORDER}])
def test_every_part_of_the_key_counts(change: dict[str, int]) -> None:
    assert not set(numbers()) & set(numbers(**change))  # type: ignore[arg-type]


def test_takes_negative_and_large_seeds() -> None:
    assert numbers(seed=-1) != numbers(seed=2**63)
