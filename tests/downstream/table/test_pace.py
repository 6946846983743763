"""What a table of trials will take, by a clock that is made up."""

from __future__ import annotations

import pytest

from dovetail.downstream.table import pace
from dovetail.downstream.table.pace import Pace


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let half a second go by from one look at the clock to the next."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(pace.time, "perf_counter", lambda: next(ticks) / 2)


def test_the_plan_comes_first_and_the_time_after_six_steps(clock: None, capsys: pytest.CaptureFixture[str]) -> None:
    table = Pace([100, 100, 200])
    assert capsys.readouterr().out == "3 trials, 400 steps in all. The expected time follows after 6 steps.\n"
    assert table.begin(1) == "trial 2 of 3"
    assert table.stepped(1.0) == ", loss 1.000"
    assert capsys.readouterr().out == "The first step took 0.5 s; the other 99 of this trial take up to 50 s.\n"
    told = [table.stepped(0.5) for _ in range(6)]
    assert told[0] == ", loss 0.500, 2.0 steps/s, 2 min left in all"
    assert capsys.readouterr().out == "Expected time: about 2 min (294 steps of 0.5 s), plus evaluation.\n"


def test_the_time_of_trials_without_six_steps_follows_the_first_one(
    clock: None, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Pace([3, 3, 3])
    assert capsys.readouterr().out == "3 trials, 9 steps in all. The expected time follows after the first trial.\n"
    for number in range(3):
        table.begin(number)
        for _ in range(3):
            table.stepped(1.0)
    assert capsys.readouterr().out.splitlines() == [  # each once
        "The first step took 0.5 s; the other 2 of this trial take up to 1 s.",
        "Expected time: about 4 s with evaluation (2 trials, by the 2 s of the one before).",
    ]


def test_the_time_of_a_few_steps_is_told_too(clock: None, capsys: pytest.CaptureFixture[str]) -> None:
    table = Pace([6, 6])
    table.begin(0)
    for _ in range(6):
        table.stepped(1.0)
    table.begin(1)
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "2 trials, 12 steps in all. The expected time follows after 6 steps.",
        "The first step took 0.5 s; the other 5 of this trial take up to 2 s.",
        "Expected time: about 3 s (6 steps of 0.5 s), plus evaluation.",
    ]


def test_a_single_trial_has_no_plan_but_an_expected_time(clock: None, capsys: pytest.CaptureFixture[str]) -> None:
    table = Pace([500])
    assert capsys.readouterr().out == ""
    table.begin(0)
    for _ in range(7):
        table.stepped(1.0)
    assert capsys.readouterr().out.splitlines() == [
        "The first step took 0.5 s; the other 499 of this trial take up to 4 min.",
        "Expected time: about 4 min (494 steps of 0.5 s), plus evaluation.",
    ]


@pytest.mark.parametrize(
    ("steps", "advice"),
    [
        ([1700] * 2, ""),
        ([2000] * 2, " For a shorter run, use fewer --steps (--steps 1800 takes about 30 min) or fewer --seeds."),
        ([2000] * 50, " For a shorter run, use fewer --steps or fewer --seeds."),  # fewer than 200 would say little
    ],
)
def test_a_long_table_says_how_it_becomes_shorter(
    steps: list[int], advice: str, clock: None, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Pace(steps, ways=["fewer --seeds"])
    table.begin(0)
    for _ in range(6):
        table.stepped(1.0)
    assert capsys.readouterr().out.endswith(f"plus evaluation.{advice}\n")


def test_a_long_table_of_short_trials_says_it_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ticks = iter(range(0, 100_000, 1000))
    monkeypatch.setattr(pace.time, "perf_counter", lambda: float(next(ticks)))
    table = Pace([2, 2, 2])
    for number in range(2):
        table.begin(number)
        table.stepped(1.0)
        table.stepped(1.0)
    assert "before). For a shorter run, use fewer --steps." in capsys.readouterr().out
