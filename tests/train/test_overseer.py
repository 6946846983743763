"""Several processes that stop together, whichever of them was asked to."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from dovetail.errors import Interrupted
from dovetail.train import overseer
from dovetail.train.checkpoints import Checkpoints
from dovetail.train.engine import check_ending
from dovetail.train.interrupts import StopRequests
from dovetail.train.overseer import Overseer
from tests.train.runs import settings


def exchange(monkeypatch: pytest.MonkeyPatch, out: Path, *, own: int | None, other: int) -> tuple[Any, StopRequests]:
    """Return what a process agrees on with another one, and its requests, after the signals `own` and `other`."""

    def with_other(value: Tensor) -> Tensor:
        return torch.maximum(value, torch.tensor([float(other), 0.0, 0.1]))

    monkeypatch.setattr(overseer, "max_over_ranks", with_other)
    stops = StopRequests()
    stops.received = own
    trainer: Any = SimpleNamespace(world_size=2, strategy=SimpleNamespace(root_device=torch.device("cpu")))
    return Overseer(settings(), Checkpoints(out), stops)._agreed(trainer, 4, save=False), stops


@pytest.mark.parametrize(("own", "other"), [(None, signal.SIGTERM), (signal.SIGTERM, 0)])
def test_a_signal_to_one_process_ends_all_alike(
    own: int | None, other: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    agreed, stops = exchange(monkeypatch, tmp_path, own=own, other=other)
    assert agreed == (True, False)
    module: Any = SimpleNamespace(steps_done=4)
    with pytest.raises(Interrupted, match="Stopped by SIGTERM after step 4 of 6") as caught:
        check_ending(module, stops, settings(), tmp_path)
    assert caught.value.exit_code == 143


def test_processes_that_nobody_asked_go_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    agreed, stops = exchange(monkeypatch, tmp_path, own=None, other=0)
    assert agreed == (False, False)
    assert stops.received is None


def test_the_own_ctrl_c_after_that_of_another_process_is_the_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    _, stops = exchange(monkeypatch, tmp_path, own=None, other=signal.SIGINT)
    stops.listen(signal.SIGINT)
    try:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        stops.restore()
