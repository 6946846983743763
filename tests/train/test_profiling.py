from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dovetail.errors import DovetailError
from dovetail.train.learner import Learner
from dovetail.train.phases import PHASES, PREFIX
from dovetail.train.profiling import WARM_UP, StepProfile, summary
from tests.tiny import tiny_learner
from tests.train.runs import differing, run, settings

HEAVY = {"aten::convolution", "aten::convolution_backward", "aten::addmm", "aten::_foreach_lerp_"}


@dataclass(frozen=True)
class Averaged:
    key: str
    count: int
    cpu_time_total: float
    self_cpu_time_total: float
    self_device_time_total: float = 0.0


def test_the_summary_adds_up() -> None:
    events = [
        Averaged(f"{PREFIX}student", 2, 4e5, 1e3),
        Averaged(f"{PREFIX}backward", 2, 1e6, 1e3),
        Averaged("aten::mm", 40, 9e5, 8e5),
        Averaged("aten::add", 10, 9e3, 9e3),
    ]
    lines = summary(events, steps=2, seconds=2.0).splitlines()
    assert lines[0].startswith("Profile of 2 steps, 1000.0 ms each")
    assert [line.split() for line in lines[1:4]] == [
        ["student", "200.0", "ms", "20.0%"],
        ["backward", "500.0", "ms", "50.0%"],
        ["everything", "else", "300.0", "ms", "30.0%"],
    ]
    assert "on the CPU" in lines[4]
    assert [line.split()[0] for line in lines[5:]] == ["aten::mm", "aten::add"]  # phases are no operations
    assert lines[5].split()[1:] == ["400.00", "ms", "20.0x"]


def test_operations_on_a_gpu_are_told_by_its_own_time() -> None:
    events = [Averaged("aten::mm", 1, 9e3, 9e3, 1e3), Averaged("aten::add", 1, 1e3, 1e3, 8e3)]
    lines = summary(events, steps=1, seconds=0.1).splitlines()
    assert "on the GPU" in lines[2]
    assert [line.split()[0] for line in lines[3:]] == ["aten::add", "aten::mm"]


@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_profiled_run_tells_where_its_time_went(tmp_path: Path, accumulate: int) -> None:
    chosen = settings(accumulate=accumulate, num_images=16 * 3)
    learner, _ = run(tmp_path / "profiled", chosen, learner=few_operations(), profile=2)
    text = (tmp_path / "profiled" / "profile" / "summary.txt").read_text(encoding="utf-8")
    assert "Profile of 2 steps" in text
    for name in PHASES:
        assert name in text
    shares = [float(line.split()[-1].rstrip("%")) for line in text.splitlines()[1 : len(PHASES) + 2]]
    assert sum(shares) == pytest.approx(100, abs=1)
    with gzip.open(tmp_path / "profiled" / "profile" / "trace.json.gz") as file:
        events = json.load(file)["traceEvents"]
    phases = [event for event in events if event.get("cat") == "user_annotation"]
    assert outside(phases, events) == []
    assert outside([one for one in phases if one["name"] != f"{PREFIX}backward"], events)
    names = [event["name"] for event in phases]
    assert names.count(f"{PREFIX}teacher's average") == 2
    assert names.count(f"{PREFIX}backward") == 2 * accumulate
    plain, _ = run(tmp_path / "plain", chosen, learner=few_operations())
    assert not differing(learner.state_dict(), plain.state_dict())


def few_operations() -> Learner:
    """Return a learner with a teacher and without a decoder: a trace of many operations takes long to read."""
    return tiny_learner("moco-v2", model="timm/test_resnet")


def outside(phases: list[dict[str, Any]], events: list[dict[str, Any]]) -> list[str]:
    """Return the operations with weights or maps that began in none of the phases of their thread."""
    spans = [(one["tid"], one["ts"], one["ts"] + one["dur"]) for one in phases if one["name"].startswith(PREFIX)]
    heavy = [one for one in events if one.get("name") in HEAVY]
    assert {one["name"] for one in heavy} == HEAVY
    return [
        one["name"]
        for one in heavy
        if not any(thread == one["tid"] and start <= one["ts"] <= end for thread, start, end in spans)
    ]


def test_there_must_be_steps_enough(tmp_path: Path) -> None:
    with pytest.raises(DovetailError, match=f"profile is 4, plus {WARM_UP} warm-up steps, but the run has 6 left"):
        run(tmp_path, settings(), profile=4)
    with pytest.raises(DovetailError, match="profile is -1; it must be at least 1"):
        StepProfile(tmp_path, -1, left=100)
