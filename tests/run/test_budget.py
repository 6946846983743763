"""Runs planned into a wall time, with known times of steps."""

from __future__ import annotations

from typing import Any

import pytest

from dovetail.errors import DovetailError
from dovetail.networks.build import build_network
from dovetail.recipes import presets
from dovetail.run.budget import Cost, planned
from dovetail.run.options import PretrainOptions

MODEL = "timm/test_resnet+fpn(channels=16)"


def plan(budget: float, *, natural: int = 5000, **values: Any) -> PretrainOptions:
    """Plan where a step takes a second at 128 px, in proportion to the pixels."""
    given = {"model": MODEL, "method": "decon-sl", "accelerator": "cpu", "budget": f"{budget}s", **values}
    options = PretrainOptions.given({"data": "photos", **given})

    def measure(found: PretrainOptions) -> Cost:
        return Cost(((found.image_size or 128) / 128) ** 2, natural)

    return planned(options, build_network(MODEL), lambda: budget, measure)[0]


def test_steps_fill_the_budget_and_the_smallest_views_come_last() -> None:
    roomy, narrow, least = plan(500), plan(120), plan(40)
    assert (roomy.image_size, roomy.max_steps, roomy.preset) == (128, 450, "short")
    assert (narrow.image_size, narrow.max_steps) == (64, 432)  # 108 steps at 128 px, 192 at 96
    assert (least.image_size, least.max_steps) == (64, 144)
    assert least.budget is None  # what ran is written down


def test_a_long_budget_takes_the_preset_for_long_runs_and_never_more_than_the_runs_own_length() -> None:
    assert (plan(3000).preset, plan(3000).max_steps) == ("auto", 2700)
    assert plan(100_000, natural=2000).max_steps == 2000


def test_a_size_that_was_given_stays() -> None:
    found = plan(40, image_size=256, preset="paper")
    assert (found.image_size, found.max_steps) == (256, 9)
    assert (found.recipe or {}) == {"decoder_cells": 196}


def test_no_run_is_timed_twice() -> None:
    options = PretrainOptions.given({"data": "photos", "model": MODEL, "method": "decon-sl", "accelerator": "cpu"})
    timed: list[tuple[Any, int]] = []

    def measure(found: PretrainOptions) -> Cost:
        cells = presets.options("short", "decon-sl")["decoder_cells"]  # which the preset samples already
        timed.append((found.image_size, (found.recipe or {}).get("decoder_cells", cells)))
        return Cost(5.0, 100)

    found, _ = planned(options.changed(budget="40s"), build_network(MODEL), lambda: 40.0, measure)
    assert found.preset == "short"
    assert timed == [(128, 196), (96, 196), (64, 196)]


def test_a_budget_that_timing_uses_up_is_told_and_not_timed_any_further() -> None:
    options = PretrainOptions.given({"data": "photos", "model": MODEL, "method": "decon-sl", "budget": "3s"})
    left, timed = iter([-2.0, -2.0, -2.0]), []

    def measure(found: PretrainOptions) -> Cost:
        timed.append(found.image_size)
        return Cost(5.0, 100)

    found, told = planned(options, build_network(MODEL), lambda: next(left), measure)
    assert (len(timed), found.max_steps) == (1, 1)
    assert told.startswith("Timing the steps (5 s each")
    assert "used up the budget of 3s" in told


@pytest.mark.parametrize("other", [{"max_steps": 5}, {"epochs": 2}, {"resume": True}])
def test_a_budget_stands_alone(other: dict[str, Any]) -> None:
    with pytest.raises(DovetailError, match="budget"):
        PretrainOptions.given({"data": "photos", "model": MODEL, "budget": "2h", **other}).check_complete()
