"""Sizes: what users may write, and arithmetic on both sides."""

from __future__ import annotations

from typing import Any

import pytest

from dovetail.errors import OptionsError
from dovetail.sizes import as_size, multiple_of, sides, size_in_words, times, with_aspect_of


@pytest.mark.parametrize("value", ["64x128", "64 X 128", "64×128", (64, 128), [64, 128], ["64", "128"]])
def test_every_spelling_of_height_and_width_is_read(value: Any) -> None:
    assert as_size(value) == (64, 128)
    assert sides(as_size(value)) == (64, 128)
    assert size_in_words(as_size(value)) == "64x128"


@pytest.mark.parametrize("value", [224, "224", (224, 224), "224x224", [224]])
def test_a_square_is_one_number(value: Any) -> None:
    assert as_size(value) == 224
    assert type(as_size(value)) is int
    assert sides(224) == (224, 224)


@pytest.mark.parametrize("value", ["wide", "64x", "64x128x3", 64.5, True, (64, True), [], None, "-64", {"height": 64}])
def test_other_values_get_a_sentence(value: Any) -> None:
    with pytest.raises(OptionsError, match=r"^image_size is .*a height and a width such as 64x128\.$"):
        as_size(value)


def test_sizes_are_rounded_and_scaled_per_side() -> None:
    assert multiple_of((50, 100), 32) == (64, 96)
    assert multiple_of((10, 30), 32) == 32
    assert times((64, 96), 2) == (128, 192)
    assert with_aspect_of(32, (64, 128), 16) == (32, 64)
    assert with_aspect_of(32, (192, 64), 16) == (96, 32)
    assert with_aspect_of(96, 224, 16) == 96
    assert with_aspect_of(90, 224, 16) == 90  # squares are not rounded
