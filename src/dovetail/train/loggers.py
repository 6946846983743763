"""Weights & Biases and MLflow in addition to TensorBoard. Nothing is sent anywhere by default."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from numpy.typing import NDArray

from dovetail.errors import OptionsError, ResourceError, unknown_name

PROJECT = "dovetail"


def wandb_logger(out: Path) -> Logger:
    """Return a logger for Weights & Biases, which reads its environment variables (WANDB_MODE and so on)."""
    return WandbLogger(project=os.environ.get("WANDB_PROJECT", PROJECT), name=out.name, save_dir=out)


def mlflow_logger(out: Path) -> Logger:
    """Return a logger for MLflow, writing to MLFLOW_TRACKING_URI or to mlflow.db and mlartifacts/ in the run folder."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return MLFlowLogger(experiment_name=PROJECT, run_name=out.name, tracking_uri=uri)
    here = out.resolve()  # a database, because MLflow no longer supports plain files
    uri, artifacts = f"sqlite:///{here / 'mlflow.db'}", (here / "mlartifacts").as_uri()
    return MLFlowLogger(experiment_name=PROJECT, run_name=out.name, tracking_uri=uri, artifact_location=artifacts)


MAKERS: Mapping[str, Callable[[Path], Logger]] = {"wandb": wandb_logger, "mlflow": mlflow_logger}


def check_loggers(asked: Sequence[str | Logger]) -> None:
    """Raise `DovetailError` for an unknown name or a missing package, before a run writes anything."""
    for name in asked:
        if isinstance(name, Logger):
            continue
        if not isinstance(name, str):
            raise OptionsError(f"A logger is a {type(name).__name__}; pass a name or a Lightning logger.")
        if name not in MAKERS:
            raise unknown_name("logger", name, MAKERS)
        if importlib.util.find_spec(name) is None:
            raise ResourceError(
                f"The logger {name} needs the package {name}, which is not installed; run `pip install {name}` or "
                "remove the logger."
            )


def extra_loggers(asked: Sequence[str | Logger], out: Path) -> list[Logger]:
    """Return the started loggers with these names for the run in `out`; logger objects are returned unchanged.

    Raises:
        DovetailError: As in `check_loggers`, or if a logger cannot be started, such as without its server.
    """
    check_loggers(asked)
    found = []
    for name in dict.fromkeys(asked):
        try:
            logger = name if isinstance(name, Logger) else MAKERS[name](out)
            getattr(logger, "experiment", None)  # starts it before Lightning does
        except Exception as error:  # servers fail in many ways
            shown = name if isinstance(name, str) else type(name).__name__
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ResourceError(
                f"The logger {shown} cannot be started ({reason}); fix this or remove the logger."
            ) from error
        found.append(logger)
    return found


def log_picture(logger: Logger, name: str, pixels: NDArray[np.uint8], *, step: int) -> None:
    """Log a picture [H, W, 3] under a name such as "slots/encoder"; other loggers ignore it."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, pixels, step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [pixels], step=step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, pixels, f"{name}.png")
