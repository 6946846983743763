"""What a run says of itself, and that one which does not begin leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

import dovetail
from dovetail.errors import DovetailError
from dovetail.run.summary import next_steps
from tests.train.runs import settings


def test_a_run_that_does_not_begin_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DovetailError, match="Found no folder"):
        dovetail.pretrain(data=tmp_path / "fotos", model="timm/test_resnet", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("init", "starts"), [("imagenet", "imagenet all"), (None, "random all")])
def test_the_gain_is_measured_over_the_weights_that_the_run_started_from(
    init: str | None, starts: str, tmp_path: Path
) -> None:
    assert f"--start {starts}\n" in next_steps(tmp_path, init) + "\n"


def test_a_frozen_encoder_is_written_as_its_option_is() -> None:
    assert "freeze_encoder_epochs  all\n" in settings(freeze_encoder_epochs=float("inf")).table()
