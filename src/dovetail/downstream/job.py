"""What every `dovetail finetune` does: a table of trials, each of which builds, loads, learns and measures a model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dovetail.downstream.finished import Task, save_finished
from dovetail.downstream.fit import FitOptions, OnStep
from dovetail.downstream.labels.subsets import balanced_order
from dovetail.downstream.machine import Machine
from dovetail.downstream.options import FinetuneOptions
from dovetail.downstream.probe.job import resolved
from dovetail.downstream.progress import progress
from dovetail.downstream.start import Source, Start, weights_mark
from dovetail.downstream.table.ledger import Fitted, mark_of
from dovetail.downstream.table.pace import Pace
from dovetail.downstream.table.results import Results
from dovetail.downstream.table.trials import Grid, Trial, check_trained, run_trials
from dovetail.downstream.table.verdict import verdict
from dovetail.errors import counted


class FinetunePlan(ABC):
    """A fine-tuning of one task, all of it but the trial.

    Attributes:
        source: Where the model comes from.
        where: Device, number format, threads.
    """

    source: Source
    where: Machine

    @abstractmethod
    def model(self) -> tuple[nn.Module, nn.Module]:
        """Return a new model with random weights, and the module in it that the source's weights go into."""

    @abstractmethod
    def options_for(self, trial: Trial) -> FitOptions:
        """Return the options of a trial: its seed, and the steps that its images take."""

    @abstractmethod
    def learn(self, model: nn.Module, trial: Trial, on_step: OnStep) -> None:
        """Fine-tune a model in place on a trial's images."""

    @abstractmethod
    def measure(self, model: nn.Module, on_batch: Callable[[int], None]) -> Fitted:
        """Return the scores of a fine-tuned model; `on_batch` is called with the number of images done."""

    @abstractmethod
    def classes(self) -> Sequence[Sequence[int]]:
        """Return the classes that occur in each training image."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return what results.json says about the data: fingerprint, train_images, test_images, classes."""

    @abstractmethod
    def task(self) -> Task:
        """Return what is needed to use the model later."""


def run_plan(
    name: str,
    asked: FinetuneOptions,
    plan: FinetunePlan,
    starts: Sequence[Start],
    *,
    notes: Sequence[str] = (),
    marks: Sequence[object] = (),
) -> Results:
    """Run all trials that are not done yet, keep the weights of one, and return the table.

    Args:
        name: Of the verb.
        asked: Its options.
        plan: The task.
        starts: Starting points.
        notes: Sentences on the data to read with the numbers.
        marks: What decides the numbers beside options, weights, data and machine.
    """
    out, facts = Path(asked.out), plan.facts()

    def fit(trial: Trial) -> Fitted:
        torch.manual_seed(trial.seed)
        model, target = plan.model()
        plan.source.load(target, trial.start)
        steps = plan.options_for(trial).steps
        title = f"{pace.begin(trial.number)}: {trial.start}, {counted(len(trial.indices), 'image')}"
        with progress(title, steps) as advance:
            plan.learn(model, trial, lambda step, loss: advance(1, pace.stepped(loss)))
        check_trained(model)
        with progress("measuring", facts["test_images"]) as advance:
            found = plan.measure(model, advance)
        if trial.keep:
            save_finished(out, model, plan.task())
        return found

    classes = cache(plan.classes)  # once for all seeds
    seeds = range(asked.seed, asked.seed + asked.seeds)
    grid = Grid(starts, asked.fraction, seeds, facts["train_images"], lambda seed: balanced_order(classes(), seed))
    grid.check()
    pace = Pace([plan.options_for(trial).steps for trial in grid.trials()])
    decisive = (plan.source.constructor, weights_mark(plan.source), facts["fingerprint"], plan.where.mark(), *marks)
    rows, details = run_trials(grid, fit=fit, out=out, mark=mark_of(asked, *decisive))
    config = resolved(asked, plan.source, plan.where, plan.options_for(grid.whole()))
    return Results(
        name, rows, config, facts, plan.where.device, (*notes, *grid.notes(), *verdict(rows)), details=details
    )
