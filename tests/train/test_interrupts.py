"""A run that is asked to stop saves, and says how to resume."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dovetail.errors import Interrupted
from dovetail.views.view import View
from tests.tiny import tiny_learner
from tests.train.runs import Views, differing, learner_with_dropout, run, settings


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(
    tmp_path: Path, uninterrupted: dict[str, Tensor], number: signal.Signals
) -> None:
    chosen = settings()
    before = signal.getsignal(number)

    class Signalling(Views):
        def to_views(self, batch: int, device: torch.device) -> list[View]:
            if batch == 3:
                os.kill(os.getpid(), number)
            return super().to_views(batch, device)

    learner = learner_with_dropout()
    with pytest.raises(Interrupted, match=rf"{number.name}\)? after step 4 of 6.*--resume") as caught:
        run(tmp_path, chosen, learner=learner, views=Signalling(learner.recipe.views, chosen))
    assert caught.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
    assert (tmp_path / "train.log").read_text().splitlines()[-1].endswith(f"INFO {caught.value}")
    resumed, _ = run(tmp_path, chosen, resume=True)
    assert differing(uninterrupted, resumed.state_dict()) == []


def test_a_second_ctrl_c_says_where_it_stopped(tmp_path: Path) -> None:
    chosen = settings()
    before = signal.getsignal(signal.SIGINT)

    class Impatient(Views):
        def to_views(self, batch: int, device: torch.device) -> list[View]:
            if batch == 3:
                signal.raise_signal(signal.SIGINT)
                signal.raise_signal(signal.SIGINT)
            return super().to_views(batch, device)

    learner = tiny_learner("densecl")
    with pytest.raises(KeyboardInterrupt, match="second Ctrl-C after step 3; add --resume to continue") as caught:
        run(tmp_path, chosen, learner=learner, views=Impatient(learner.recipe.views, chosen))
    assert signal.getsignal(signal.SIGINT) is before
    assert (tmp_path / "train.log").read_text().splitlines()[-1].endswith(f" {caught.value}")
