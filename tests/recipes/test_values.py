"""Values of options: what types and names allow, and the sentence for the rest."""

from __future__ import annotations

import math
from typing import Any

import pytest

from dovetail.errors import DovetailError
from dovetail.recipes.table import examples, options_of
from dovetail.recipes.values import check_value


@pytest.mark.parametrize("method", examples())
def test_every_default_is_allowed(method: str) -> None:
    for name, parameter in options_of(method).items():
        check_value(name, parameter, parameter.default)


@pytest.mark.parametrize(
    ("method", "name", "value", "sentence"),
    [
        ("slotcon", "dim", -1, "dim is -1; it must be a whole number of at least 0"),
        ("slotcon", "dim", 0, "dim is 0; it must be at least 1"),
        ("slotcon", "dim", 8.5, "dim is 8.5; it must be a whole number"),
        ("slotcon", "dim", True, "dim is True; it must be a whole number"),
        ("slotcon", "base_lr", math.nan, "base_lr is nan; it must be a number of at least 0"),
        ("slotcon", "teacher_temperature", 0.0, "teacher_temperature is 0; it must be above 0"),
        (
            "simclr",
            "rows_per_block",
            "many",
            "rows_per_block is 'many'; it must be a whole number of at least 0 or left",
        ),
        ("decon-sl", "lateral_dropout_kind", "chanel", "did you mean 'channel'"),
        ("dino", "global_scale", (0.1,), "global_scale is .*number"),
    ],
)
def test_wrong_values_get_a_sentence(method: str, name: str, value: Any, sentence: str) -> None:
    with pytest.raises(DovetailError, match=sentence) as raised:
        check_value(name, options_of(method)[name], value)
    assert "\n" not in str(raised.value)


def test_yaml_lists_stand_for_tuples_and_whole_numbers_for_others() -> None:
    options = options_of("dino")
    check_value("global_scale", options["global_scale"], [0.25, 1])
    check_value("momentum", options["momentum"], 1)
