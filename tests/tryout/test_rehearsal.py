"""What the smallest stages of `dovetail try` cost, and what a budget leaves for the pre-trainings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dovetail.errors import RunError
from dovetail.run.folder import write_config
from dovetail.tryout.finetuning import Trial
from dovetail.tryout.job import costs_of
from dovetail.tryout.options import TryOptions
from dovetail.tryout.plan import Clock, plan_of
from dovetail.tryout.rehearsal import Costs, about_budget, lasting, seconds_for, seconds_of_step

MODEL = "timm/test_resnet+fpn(channels=16)"
COSTS = Costs(run=10.0, step=2.0, frozen=3.0, trial=Trial(0.5, 4.0, 24), image_size=(64, 128))


def options(budget: str) -> TryOptions:
    given = {"data": "photos", "labels": "labelled", "out": "runs/try", "model": MODEL, "init": "random"}
    return TryOptions.given({**given, "budget": budget})


def clock_of(folder: Path, seconds: float, **stages: float) -> Clock:
    clock = Clock(folder, seconds)
    clock.state["seconds"] = dict(stages)
    return clock


def test_the_smallest_comparison_counts_every_stage() -> None:
    plan = plan_of(options("1min"))  # two pre-trainings, and four starts of which three are fine-tuned
    assert COSTS.later(plan) == 3 * 3.0 + 3 * (4.0 + 40 * 0.5)
    assert COSTS.before(plan, 1) == 2 * (10.0 + 5 * 2.0)  # four timed steps, and one
    assert COSTS.later(plan, 2) == 3 * 3.0 + 2 * 3 * (4.0 + 40 * 0.5)


def test_a_budget_that_can_show_nothing_is_refused_with_one_that_can(tmp_path: Path) -> None:
    asked = options("3min")  # one seed would fit
    clock = clock_of(tmp_path, 180.0, planning=4.0, timing=15.0)
    with pytest.raises(RunError) as refused:
        about_budget(asked, plan_of(asked), COSTS, clock)
    assert str(refused.value) == (
        "The budget of 3min is too short to show anything: the smallest comparison, with 2 seeds, takes about 4 min on "
        "these images; use --budget 40min, which has time for pre-trainings of 200 steps."
    )
    # 45 % of 40 min hold both pre-trainings of 200 steps of 2 s, and the rest three seeds.
    longer = clock_of(tmp_path, 2400.0, planning=4.0, timing=15.0)
    each = seconds_for(plan_of(asked), COSTS, longer, left=2, seeds=2)
    assert each > 200 * 2.0
    assert longer.left() - 2 * (each + COSTS.run) > COSTS.later(plan_of(asked), 3)


def test_a_budget_of_two_seeds_is_kept(tmp_path: Path) -> None:
    asked = options("10min")
    told = about_budget(asked, plan_of(asked), COSTS, clock_of(tmp_path, 600.0, planning=4.0, timing=15.0))
    # 45 % of 600 s for two pre-trainings, less 10 s for each that are not for its steps
    assert told == (
        "Of the budget of 10min, 19 s were taken by timing; each pre-training gets about 2 min, and evaluation and "
        "fine-tuning about 5 min."
    )
    total = 19.0 + COSTS.before(plan_of(asked), 10) + COSTS.later(plan_of(asked), 2)
    told = about_budget(asked, plan_of(asked), COSTS, clock_of(tmp_path, total, planning=4.0, timing=15.0))
    assert told.endswith(
        " This may be too short for 3 seeds, without which no gain can be shown; --budget 40min is long enough."
    )
    with pytest.raises(RunError, match="too short to show anything"):
        about_budget(asked, plan_of(asked), COSTS, clock_of(tmp_path, total - 1, planning=4.0, timing=15.0))


def test_a_single_seed_that_is_asked_for_is_enough(tmp_path: Path) -> None:
    asked = options("3min").changed(seeds=1)
    assert about_budget(asked, plan_of(asked), COSTS, clock_of(tmp_path, 180.0, planning=4.0, timing=15.0))


def test_short_recommended_budgets_are_whole_minutes(tmp_path: Path) -> None:
    cheap = Costs(run=1.0, step=0.1, frozen=1.0, trial=Trial(0.1, 1.0, 24), image_size=64)
    asked = options("10s")
    assert lasting(asked, plan_of(asked), cheap, clock_of(tmp_path, 10.0, timing=5.0)) == "2min"


def test_a_pretraining_that_took_longer_leaves_less_to_the_next(tmp_path: Path) -> None:
    plan = plan_of(options("10min"))
    first = seconds_for(plan, COSTS, clock_of(tmp_path, 600.0, timing=20.0), left=2, seeds=1)
    assert first == 0.45 * 600 / 2 - 10
    second = seconds_for(plan, COSTS, clock_of(tmp_path, 600.0, timing=20.0, base=200.0), left=1, seeds=1)
    assert second == 0.45 * 600 - 200 - 10
    # The smallest evaluation and fine-tuning keep their 81 seconds.
    short = seconds_for(plan, COSTS, clock_of(tmp_path, 140.0, timing=20.0), left=2, seeds=1)
    assert short == (140 - 20 - 81) / 2 - 10
    assert seconds_for(plan, COSTS, clock_of(tmp_path, 60.0, timing=20.0), left=2, seeds=1) == 1.0


def test_costs_are_kept_for_a_resumed_command() -> None:
    assert Costs.from_dict(json.loads(json.dumps(COSTS.as_dict()))) == COSTS


@pytest.mark.parametrize("damaged", [{}, [], COSTS.as_dict() | {"trial": 3}, COSTS.as_dict() | {"image_size": "x"}])
def test_damaged_costs_are_one_sentence(damaged: object, tmp_path: Path) -> None:
    clock = clock_of(tmp_path, 60.0)
    clock.state["costs"] = damaged
    with pytest.raises(RunError, match=r"state\.json cannot be read .* specify another folder with --out"):
        costs_of(options("1min"), plan_of(options("1min")), clock)


def test_the_duration_of_a_step_follows_from_the_log(tmp_path: Path) -> None:
    write_config(tmp_path, {"data": "photos", "model": MODEL, "batch_size": 8, "accumulate": 2})
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 1.0, "images_per_second": 4.0}) + "\n")
    assert seconds_of_step(tmp_path) == pytest.approx(4.0)
