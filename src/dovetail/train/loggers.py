"""Weights & Biases and MLflow beside TensorBoard, by their names. Nothing is sent anywhere unless one is asked for."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from numpy.typing import NDArray

from dovetail.errors import OptionsError, ResourceError, unknown_name

PROJECT = "dovetail"


def wandb_logger(out: Path) -> Logger:
    """Return a logger for Weights & Biases; its own environment variables (WANDB_MODE and so on) count."""
    return WandbLogger(project=os.environ.get("WANDB_PROJECT", PROJECT), name=out.name, save_dir=out)


def mlflow_logger(out: Path) -> Logger:
    """Return a logger for MLflow: to MLFLOW_TRACKING_URI, else into mlflow.db and mlartifacts/ in the run's folder."""
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return MLFlowLogger(experiment_name=PROJECT, run_name=out.name, tracking_uri=uri)
    here = out.resolve()  # a database, since MLflow no longer takes plain files
    uri, artifacts = f"sqlite:///{here / 'mlflow.db'}", (here / "mlartifacts").as_uri()
    return MLFlowLogger(experiment_name=PROJECT, run_name=out.name, tracking_uri=uri, artifact_location=artifacts)


MAKERS: Mapping[str, Callable[[Path], Logger]] = {"wandb": wandb_logger, "mlflow": mlflow_logger}


def extra_loggers(asked: Sequence[str | Logger], out: Path) -> list[Logger]:
    """Return the loggers of these names for the run in `out`, and those that are loggers already.

    Raises:
        DovetailError: For an unknown name, or a package that is not installed.
    """
    found = []
    for name in dict.fromkeys(asked):
        if isinstance(name, Logger):
            found.append(name)
            continue
        if not isinstance(name, str):
            raise OptionsError(f"A logger is a {type(name).__name__}; give a name or a logger of Lightning.")
        if name not in MAKERS:
            raise unknown_name("logger", name, MAKERS)
        try:
            found.append(MAKERS[name](out))
        except ImportError:
            raise ResourceError(
                f"The logger {name} needs the package {name}, which is not installed; run `pip install {name}`, or "
                "leave it out."
            ) from None
    return found


def log_picture(logger: Logger, name: str, pixels: NDArray[np.uint8], *, step: int) -> None:
    """Give a picture [H, W, 3] to a logger under a name such as "slots/encoder"; others than these take none."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, pixels, step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [pixels], step=step)
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_image(logger.run_id, pixels, f"{name}.png")
