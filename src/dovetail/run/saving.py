"""Writes the trained weights of a run to an exported folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dovetail.networks.network import Network
from dovetail.run.options import PretrainOptions
from dovetail.train.learner import Learner
from dovetail.views.batch import statistics
from dovetail.weights.exported import save_exported


def save_run(learner: Learner, options: PretrainOptions, folder: Path, *, steps: int) -> None:
    """Write the network that a learner exports, and a description of it, to `folder`.

    Args:
        learner: Trained learner.
        options: Options of the run.
        folder: Output folder.
        steps: Number of steps of the run so far.
    """
    network: Network = learner.exported
    mean, std = statistics(learner.recipe.views, options.in_channels)
    extra: dict[str, Any] = {"model": options.model if isinstance(options.model, str) else None, "steps": steps}
    if options.value_range:
        extra["value_range"] = list(options.value_range)
    frozen, epochs = options.freeze_encoder_epochs, options.epochs
    if frozen == "all" or (not isinstance(frozen, str) and not isinstance(epochs, str) and epochs <= frozen):
        own = "random weights" if isinstance(options.model, str) else "those of the module"
        extra["frozen_encoder"] = options.init or own
    save_exported(network, folder, method=options.method, extra=extra, mean=mean, std=std)
