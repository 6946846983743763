"""Series and verdicts from a run's log."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dovetail.report.history import History, read_history


def reading(step: int, rank: float = 5.0, **changes: Any) -> dict[str, Any]:
    return {
        "step": step,
        "loss": 1.0,
        "lr": 0.1 * step,
        "effective_rank": {"c5": rank},
        "spread": {"c5": 0.5},
    } | changes


def test_half_lines_and_repeated_steps_of_a_resumed_run_count_once(tmp_path: Path) -> None:
    lines = [json.dumps(reading(1)), json.dumps(reading(2)), json.dumps(reading(2, lr=7.0)), '{"step": 3, "l']
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    series = read_history(tmp_path).number("lr")
    assert series.steps == (1, 2)
    assert series.values == (0.1, 7.0)


def test_a_run_without_readings_has_no_series(tmp_path: Path) -> None:
    history = read_history(tmp_path)
    assert history.last == {}
    assert history.number("lr").values == ()
    assert history.verdicts(["c5"])[0].state == "unknown"


def test_verdicts_follow_the_monitors() -> None:
    states = []
    for low in range(4):
        readings = (reading(1), *(reading(2 + number, rank=1.2) for number in range(low)))
        states.append(History(readings).verdicts(["c5"])[0].state)
    assert states == ["healthy", "low", "low", "collapsing"]
    recovered = History((reading(1, 1.2), reading(2, 1.2), reading(3, 1.2), reading(4))).verdicts(["c5"])[0]
    assert recovered.state == "healthy"
    assert "effective rank 5.0, spread 0.500" in recovered.words


def test_fields_that_come_and_go_keep_their_own_steps() -> None:
    history = History((reading(1, effective_rank={}), reading(2), reading(3, teacher_momentum=None)))
    assert history.group("effective_rank")[0].steps == (2, 3)
    assert history.number("teacher_momentum").values == ()


def content(step: int, within: float, position: float) -> dict[str, Any]:
    return reading(step, within_image_share={"p2": within}, position_share={"p2": position})


def test_maps_have_verdicts_of_their_own() -> None:
    assert History((reading(1),)).content_verdicts(10) == []
    for within, position, why in ((0.01, 0.1, "nearly alike"), (0.4, 0.8, "position in the crop")):
        states = []
        for low in range(4):
            readings = (content(1, 0.4, 0.1), *(content(2 + number, within, position) for number in range(low)))
            states.append(History(readings).content_verdicts(10)[0])
        assert [one.state for one in states] == ["healthy", "low", "low", "collapsing"]
        assert "within-image share 0.40, position share 0.10" in states[0].words
        assert why in states[-1].words
        assert states[-1].name == "cells of p2"
