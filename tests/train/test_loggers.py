"""Loggers by name: numbers and pictures, a sentence for unknown ones and for packages that are absent."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.loggers import Logger, TensorBoardLogger

from dovetail.errors import DovetailError
from dovetail.train.loggers import MAKERS, extra_loggers, log_picture


def test_no_name_gives_no_logger(tmp_path: Path) -> None:
    assert extra_loggers([], tmp_path) == []


def test_an_unknown_logger_is_named(tmp_path: Path) -> None:
    with pytest.raises(DovetailError, match="did you mean 'wandb'"):
        extra_loggers(["wandbb"], tmp_path)


@pytest.mark.parametrize("name", [name for name in MAKERS if importlib.util.find_spec(name) is None])
def test_an_absent_package_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(DovetailError, match=f"pip install {name}"):
        extra_loggers([name], tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", list(MAKERS))
def test_a_logger_takes_numbers_and_pictures(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name, reason=f"{name} is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    [logger] = extra_loggers([name], tmp_path)
    logger.log_metrics({"parts/encoder/slot": 1.5, "loss": 2.0}, step=3)
    log_picture(logger, "slots/encoder", np.zeros((8, 9, 3), dtype=np.uint8), step=3)
    logger.finalize("success")
    if name == "wandb":
        import wandb

        wandb.finish()
    assert any(path.suffix in (".png", ".wandb") for path in tmp_path.rglob("*"))


def test_tensorboard_takes_pictures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path)
    log_picture(logger, "slots/encoder", np.zeros((8, 9, 3), dtype=np.uint8), step=3)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    assert [event.step for event in events.Images("slots/encoder")] == [3]


class Unreachable(Logger):
    """A logger whose server does not answer."""

    @property
    def name(self) -> str:
        return "unreachable"

    @property
    def version(self) -> str:
        return "0"

    @property
    def experiment(self) -> object:
        raise ConnectionError("no answer from\n127.0.0.1")

    def log_metrics(self, metrics: object, step: int | None = None) -> None:
        """Take none."""

    def log_hyperparams(self, params: object, *args: object, **kwargs: object) -> None:
        """Take none."""


def test_a_logger_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    with pytest.raises(DovetailError, match=r"Unreachable cannot be started \(ConnectionError: no answer from 127"):
        extra_loggers([Unreachable()], tmp_path)
