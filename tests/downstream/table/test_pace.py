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
    told = "Expected time: about 4 s with evaluation (2 trials, by the 2 s of the one before).\n"
    assert capsys.readouterr().out == told  # once


def test_the_time_of_a_few_steps_is_told_too(clock: None, capsys: pytest.CaptureFixture[str]) -> None:
    table = Pace([6, 6])
    table.begin(0)
    for _ in range(6):
        table.stepped(1.0)
    table.begin(1)
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "2 trials, 12 steps in all. The expected time follows after 6 steps.",
        "Expected time: about 3 s (6 steps of 0.5 s), plus evaluation.",
    ]


def test_a_single_trial_has_no_plan(clock: None, capsys: pytest.CaptureFixture[str]) -> None:
    Pace([500])
    assert capsys.readouterr().out == ""
