"""Whatever ends a run, its last finished step is saved where it is whole, and never over weights that are finite."""

from __future__ import annotations

import itertools
import json
import math
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dovetail.errors import DovetailError, Interrupted, StoppedWaiting
from dovetail.files.finite import first_not_finite
from dovetail.train.checkpoints import Checkpoints, read
from dovetail.train.checksummed import write_sealed
from dovetail.train.defaults import Settings
from dovetail.train.interrupts import StopRequests, stop_signals
from dovetail.train.learner import Learner
from dovetail.views.view import View
from tests.train.runs import Views, differing, learner_with_dropout, run, settings


class Ending(Views):
    """Views whose loader raises before a micro-batch, or whose making of views does."""

    def __init__(self, *arguments: Any, at: int, where: str, error: BaseException) -> None:
        super().__init__(*arguments)
        self.at, self.where, self.error = at, where, error

    def batches(self, first_step: int) -> Iterator[int]:
        for batch in super().batches(first_step):
            if batch == self.at and self.where == "loader":
                raise self.error
            if batch == self.at and self.where == "end of data":
                return
            yield batch

    def to_views(self, batch: int, device: torch.device) -> list[View]:
        if batch == self.at and self.where == "views":
            raise self.error
        return super().to_views(batch, device)


def spoil(tensor: Tensor) -> None:
    """Make one value NaN."""
    tensor.data[(0,) * tensor.ndim] = math.nan


def saved_step(out: Path) -> int:
    return int(read(out / "checkpoints" / "last.ckpt")["step"])


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Settings], dict[str, Tensor]]:
    """What runs that nothing ends are left with, trained once for each method and number of micro-batches."""
    done: dict[tuple[str, int], dict[str, Tensor]] = {}

    def state(method: str, chosen: Settings) -> dict[str, Tensor]:
        key = (method, chosen.accumulate)
        if key not in done:
            learner, _ = run(tmp_path_factory.mktemp("whole"), chosen, learner=learner_with_dropout(method))
            done[key] = learner.state_dict()
        return done[key]

    return state


PLACES = ("loader", "views", "forward", "end of data")
QUICK = {("decon-sl", place, 2) for place in PLACES} | {("densecl", "forward", 1)}


@pytest.mark.parametrize(
    ("method", "where", "accumulate"),
    [
        pytest.param(*case, marks=() if case in QUICK else pytest.mark.slow)
        for case in itertools.product(("decon-sl", "densecl"), PLACES, (1, 2))
    ],
)
def test_an_error_loses_no_finished_step(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole_runs: Callable[[str, Settings], dict[str, Tensor]],
    method: str,
    where: str,
    accumulate: int,
) -> None:
    """In the middle of accumulation as well, where BatchNorm, queues and prototypes have moved on already."""
    chosen = settings(steps_per_epoch=2, accumulate=accumulate, batch_size=4 // accumulate)
    whole = whole_runs(method, chosen)
    at, error = 4 * accumulate - 1, RuntimeError("a loader that died")
    learner = learner_with_dropout(method)
    views = Ending(learner.recipe.views, chosen, at=at, where=where, error=error)
    original, calls = Learner.forward, []

    def ending(self: Learner, *arguments: Any) -> Any:
        calls.append(1)
        result = original(self, *arguments)
        if where == "forward" and len(calls) == at + 1:
            raise error
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Learner, "forward", ending)
        with pytest.raises(DovetailError if where == "end of data" else RuntimeError):
            run(tmp_path / "cut", chosen, learner=learner, views=views)
    assert saved_step(tmp_path / "cut") == 3
    resumed, result = run(tmp_path / "cut", chosen, resume=True, learner=learner_with_dropout(method))
    assert result.steps == 4
    assert differing(whole, resumed.state_dict()) == []


def test_an_error_in_the_optimiser_saves_nothing_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Learner, "move_teacher", lambda *_: (_ for _ in ()).throw(RuntimeError("in the middle")))
    with pytest.raises(RuntimeError, match="in the middle"):
        run(tmp_path, settings())
    assert not (tmp_path / "checkpoints").exists()


def test_nothing_is_written_twice(tmp_path: Path) -> None:
    """A run that fails at the same step again and again keeps the checkpoint before."""
    chosen = settings(save_every_steps=2)
    for resume in (False, True, True):
        learner = learner_with_dropout()
        views = Ending(learner.recipe.views, chosen, at=3, where="loader", error=OSError("gone"))
        with pytest.raises(OSError, match="gone"):
            run(tmp_path, chosen, learner=learner, views=views, resume=resume)
        assert saved_step(tmp_path) == 3
        assert read(tmp_path / "checkpoints" / "previous.ckpt")["step"] == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_is_answered_while_data_hangs(tmp_path: Path, number: signal.Signals) -> None:
    chosen = settings()

    class Hanging(Views):
        asked: Callable[[], bool]

        def stop_when(self, asked: Callable[[], bool]) -> None:
            self.asked = asked

        def batches(self, first_step: int) -> Any:
            return self

        def __iter__(self) -> Iterator[int]:
            yield from range(3)
            os.kill(os.getpid(), number)
            for _ in range(1000):
                if self.asked():
                    raise StoppedWaiting
            raise AssertionError("nobody asked to stop")

    learner = learner_with_dropout()
    with pytest.raises(Interrupted, match=f"{number.name} after step 3 of 6, with a checkpoint") as caught:
        run(tmp_path, chosen, learner=learner, views=Hanging(learner.recipe.views, chosen))
    assert caught.value.exit_code == 128 + number
    assert saved_step(tmp_path) == 3


def test_a_hangup_that_is_ignored_stays_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    assert signal.SIGHUP in stop_signals()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert signal.SIGHUP not in stop_signals()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_several_processes_wait_a_while_for_each_other() -> None:
    stops = StopRequests()
    assert not stops.waited(0.0)
    stops._receive(signal.SIGTERM, None)
    assert stops.waited(0.0)
    assert not stops.waited(1000.0)


@pytest.mark.parametrize("what", ["weight", "buffer"])
def test_weights_that_are_no_numbers_are_never_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The loss is finite, and what the step leaves is not."""
    original = Learner.move_teacher
    steps: list[int] = []

    def spoiled(self: Learner, moment: Any) -> None:
        original(self, moment)
        steps.append(1)
        if len(steps) == 4:
            tensors = dict(self.named_parameters()) if what == "weight" else dict(self.named_buffers())
            chosen = [name for name, value in tensors.items() if value.is_floating_point() and "teacher" not in name]
            spoil(tensors[chosen[0]])
            names.append(chosen[0])

    names: list[str] = []
    monkeypatch.setattr(Learner, "move_teacher", spoiled)
    with pytest.raises(DovetailError, match="after step 4 contains NaN or infinite values, first in") as caught:
        run(tmp_path, settings(save_every_steps=2))
    assert repr(names[0]) in str(caught.value)
    assert saved_step(tmp_path) == 2
    assert first_not_finite(read(tmp_path / "checkpoints" / "last.ckpt")["learner"]) is None


def test_a_checkpoint_with_nan_gives_way_to_the_one_before(tmp_path: Path) -> None:
    run(tmp_path, settings(save_every_steps=2))
    last = tmp_path / "checkpoints" / "last.ckpt"
    state = read(last)
    spoil(next(value for value in state["learner"].values() if value.is_floating_point()))
    write_sealed(state, last)
    found = Checkpoints(tmp_path / "checkpoints").load()
    assert found is not None
    assert found["step"] == 4
    write_sealed(state, tmp_path / "checkpoints" / "previous.ckpt")
    with pytest.raises(DovetailError, match="All checkpoints in"):
        Checkpoints(tmp_path / "checkpoints").load()


@pytest.mark.parametrize(
    "state", [[], {}, {"step": "3"}, {"step": 3, "learner": [1]}, {"step": 3, "learner": {"weight": "x"}}]
)
def test_a_sealed_file_that_is_no_run_gets_a_sentence(tmp_path: Path, state: Any) -> None:
    (tmp_path / "checkpoints").mkdir()
    write_sealed(state, tmp_path / "checkpoints" / "last.ckpt")
    with pytest.raises(DovetailError, match="All checkpoints in"):
        Checkpoints(tmp_path / "checkpoints").load()


def tensors(**values: float) -> dict[str, Tensor]:
    return {name: torch.tensor([0.0, value]) for name, value in values.items()}


@pytest.mark.parametrize(
    ("values", "first"),
    [
        (tensors(a=1.0, b=math.nan, c=math.inf), "b"),
        (tensors(a=1.0, b=math.inf), "b"),
        (tensors(a=-math.inf, b=1.0), "a"),
        ({"mask": torch.tensor([[0.0, -math.inf], [0.0, 0.0]])}, None),
        ({"a": torch.tensor([1.0, -math.inf])}, "a"),
        ({"a": torch.tensor([1, 2]), "b": torch.empty(0), "c": "text"}, None),
        ({"a": torch.tensor([math.nan], dtype=torch.bfloat16)}, "a"),
        ({}, None),
    ],
)
def test_the_first_that_is_not_finite_is_named(values: dict[str, Any], first: str | None) -> None:
    assert first_not_finite(values) == first


def test_readings_stay_readable_after_an_error(tmp_path: Path) -> None:
    chosen = settings(log_every_steps=1)
    learner = learner_with_dropout()
    views = Ending(learner.recipe.views, chosen, at=3, where="loader", error=OSError("gone"))
    with pytest.raises(OSError, match="gone"):
        run(tmp_path, chosen, learner=learner, views=views)
    run(tmp_path, chosen, resume=True)
    lines = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [1, 2, 3, 4, 5, 6]
