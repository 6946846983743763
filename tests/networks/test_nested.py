"""Maps in answers of any nesting."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from dovetail.networks.nested import FIRST, LAST, channel_dimension, tensors_in, with_tensors

ONE, TWO, THREE = (torch.full((2,), float(value)) for value in (1, 2, 3))


class Pair(NamedTuple):
    fine: Tensor
    deep: Tensor


@dataclass(frozen=True)
class Answer:
    maps: tuple[Tensor, ...]
    name: str = "answer"
    hidden: Tensor | None = None


@dataclass
class Both(OrderedDict[str, Any]):
    """A dictionary that is a dataclass, too, as transformers' outputs are."""

    last: Tensor
    hidden: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        self.update(last=self.last, hidden=self.hidden)


@pytest.mark.parametrize(
    "output",
    [
        [ONE, TWO, THREE],
        (ONE, [TWO, {"deep": THREE}], "text", None),
        OrderedDict(a=ONE, b=(TWO, THREE)),
        Pair(ONE, Pair(TWO, THREE)),  # type: ignore[arg-type]
        Answer((ONE, TWO), hidden=THREE),
        Both(ONE, (TWO, THREE)),
    ],
    ids=lambda output: type(output).__name__,
)
def test_tensors_are_found_in_order_and_replaced_in_place(output: Any) -> None:
    assert [float(value[0]) for value in tensors_in(output)] == [1, 2, 3]
    changed = with_tensors(output, lambda value: 10 * value)
    assert type(changed) is type(output)
    assert [float(value[0]) for value in tensors_in(changed)] == [10, 20, 30]
    assert [float(value[0]) for value in tensors_in(output)] == [1, 2, 3]


def test_anything_else_stays_as_it_is() -> None:
    thing = object()
    assert tensors_in(thing) == []
    assert with_tensors(thing, lambda value: value) is thing


@pytest.mark.parametrize(
    ("shape", "other", "expected"),
    [
        ((1, 8, 4, 4), (1, 8, 6, 6), FIRST),
        ((1, 4, 4, 8), (1, 6, 6, 8), LAST),
        ((1, 8, 8, 8), (1, 8, 16, 16), FIRST),
        ((1, 8, 8, 8), (1, 16, 16, 8), LAST),
        ((1, 8, 8, 8), None, None),
        ((1, 8, 8, 8), (1, 8, 8, 8), None),
        ((1, 5, 4, 4), None, FIRST),
        ((1, 4, 4, 5), None, LAST),
        ((1, 4, 5, 4), (1, 6, 5, 6), None),
        ((1, 16, 4, 4), (1, 36, 6, 6), None),
    ],
)
def test_which_dimension_has_the_channels(
    shape: tuple[int, ...], other: tuple[int, ...] | None, expected: int | None
) -> None:
    assert channel_dimension(shape, other) == expected
