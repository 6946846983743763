"""Online evaluation and the report page of a run."""

from __future__ import annotations

import logging
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from lightning.pytorch.utilities import rank_zero_only

from dovetail.data.sources import ImageSource
from dovetail.distributed import rank
from dovetail.networks.network import Network
from dovetail.recipe import Recipe
from dovetail.run.folder import RECIPE
from dovetail.run.options import PretrainOptions
from dovetail.run.summary import example, measuring
from dovetail.train.defaults import Settings
from dovetail.train.overseer import Dense, Knn
from dovetail.views.batch import statistics

if TYPE_CHECKING:
    from lightning.pytorch import Callback

    from dovetail.downstream.machine import Machine

log = logging.getLogger(__name__)


def knn_of(options: PretrainOptions, recipe: Recipe, settings: Settings) -> Knn | None:
    """Return the online kNN evaluation, or None without `knn_data`."""
    if options.knn_data is None:
        return None
    from dovetail.downstream.probe.online import OnlineKnn  # slow to import

    mean, std = statistics(recipe.views, options.in_channels)
    size = recipe.views.views[0].size_px
    knn = OnlineKnn(options.knn_data, size=size, mean=mean, std=std, machine=machine_of(settings))
    if knn.note and rank() == 0:
        print(knn.note)
    return knn


def dense_of(options: PretrainOptions, recipe: Recipe, settings: Settings, network: Network) -> Dense | None:
    """Return the online dense evaluation, or None without `dense_data`."""
    if options.dense_data is None:
        return None
    from dovetail.downstream.dense.online import OnlineDense

    mean, std = statistics(recipe.views, options.in_channels)
    size = recipe.views.views[0].size_px
    dense = OnlineDense(options.dense_data, network, size=size, mean=mean, std=std, machine=machine_of(settings))
    if dense.note and rank() == 0:
        print(dense.note)
    return dense


def machine_of(settings: Settings) -> Machine:
    """Return the accelerator and precision of the online evaluation: those of the run."""
    from dovetail.downstream.machine import machine

    return machine(settings.accelerator, "bf16" if settings.precision == "bf16-mixed" else "float32")


@rank_zero_only
def report_of(
    config: PretrainOptions, recipe: Recipe, network: Network, source: ImageSource, settings: Settings, out: Path
) -> Callback | None:
    """Return the callback that writes the report page, or None if it is disabled or cannot be prepared."""
    minutes = config.report_every_minutes
    if minutes <= 0:
        return None
    try:
        # Plotting takes a second to import.
        from dovetail.report.live import ReportWriter
        from dovetail.report.page import Page, Subject

        text, total = (out / RECIPE).read_text(encoding="utf-8"), settings.total_steps
        ready = textwrap.dedent(example(network, out))
        subject = Subject(out, config, recipe, text, source, total, ready, measuring(out, config.init))
        with torch.random.fork_rng(devices=[]):  # the heads are initialised next, and must not depend on the page
            return ReportWriter(Page.prepare(subject, network), every_minutes=minutes)
    except Exception as error:  # a failure of the page must not stop the run
        log.warning("The report page cannot be prepared (%s: %s); training continues.", type(error).__name__, error)
        return None
