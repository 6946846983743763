"""Progress without a terminal: lines by a clock that is made up."""

from __future__ import annotations

import pytest
import torch

from dovetail.downstream import progress as module
from dovetail.downstream.labels.labelled import InMemory, Labelled
from dovetail.downstream.progress import progress
from dovetail.downstream.segment.job import in_memory


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let six seconds go by from one look at the clock to the next."""
    ticks = iter(range(10_000))
    monkeypatch.setattr(module.time, "perf_counter", lambda: 6.0 * next(ticks))


def test_a_line_comes_every_quarter_of_a_minute(clock: None, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("segment", 1200) as advance:
        for _ in range(7):
            advance(100)
    assert capsys.readouterr().err.splitlines() == [
        "segment: 300 of 1,200, about 54 s left",
        "segment: 600 of 1,200, about 36 s left",
    ]


def test_a_note_takes_the_place_of_the_time_left(clock: None, capsys: pytest.CaptureFixture[str]) -> None:
    with progress("trial 1\x1b", None) as advance:
        for _ in range(3):
            advance(1, ", loss 0.500")
    assert capsys.readouterr().err == "trial 1\\x1b, loss 0.500: 3\n"


def test_a_quick_loop_prints_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(module.time, "perf_counter", lambda: 1.0)
    with progress("reading", 3) as advance:
        advance(3)
    assert capsys.readouterr().err == ""


def test_images_that_are_read_into_memory_are_all_counted(clock: None, capsys: pytest.CaptureFixture[str]) -> None:
    image = Labelled(torch.zeros(3, 4, 4, dtype=torch.uint8), torch.zeros(4, 4, dtype=torch.int64))
    assert len(in_memory(InMemory([image] * 3))) == 3
    assert capsys.readouterr().err == "reading: 3 of 3\n"
