"""The job of all `dovetail finetune` commands: trials that each build, load, fine-tune and evaluate a model."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dovetail.downstream.examples import Example, write_examples
from dovetail.downstream.finished import Task, load_weights, save_finished
from dovetail.downstream.fit import FitOptions, OnStep
from dovetail.downstream.labels.subsets import balanced_order
from dovetail.downstream.machine import Machine
from dovetail.downstream.options import FinetuneOptions
from dovetail.downstream.probe.job import resolved
from dovetail.downstream.progress import progress
from dovetail.downstream.start import OF_A_RUN, Source, Start, weights_mark
from dovetail.downstream.table.following import Following
from dovetail.downstream.table.ledger import Fitted, mark_of
from dovetail.downstream.table.pace import Pace
from dovetail.downstream.table.results import Results
from dovetail.downstream.table.trials import Grid, Table, Trial, check_trained, run_trials
from dovetail.downstream.table.verdict import verdict
from dovetail.errors import DovetailError, counted, tell

GLANCED = 32  # number of test images for scores during training
PICTURED = 4  # number of test images on the page


class FinetunePlan(ABC):
    """A fine-tuning for one task, independent of the trial.

    Attributes:
        source: Source of the model.
        where: Device, precision and number of threads.
    """

    source: Source
    where: Machine

    @abstractmethod
    def model(self) -> tuple[nn.Module, nn.Module]:
        """Return a new model with random weights, and its submodule for the weights of the source."""

    @abstractmethod
    def options_for(self, trial: Trial) -> FitOptions:
        """Return the options of a trial, with its seed and its number of steps."""

    @abstractmethod
    def learn(self, model: nn.Module, trial: Trial, on_step: OnStep) -> None:
        """Fine-tune a model in place on the images of a trial."""

    @abstractmethod
    def measure(self, model: nn.Module, on_batch: Callable[[int], None]) -> Fitted:
        """Return the scores of a fine-tuned model. `on_batch` is called with the number of images."""

    @abstractmethod
    def glancing(self, most: int) -> FinetunePlan:
        """Return a plan with at most `most` test images, evenly spaced, for scores during training."""

    @abstractmethod
    def examples(self, model: nn.Module) -> list[Example]:
        """Return images of all (few) test images with the predictions of a fine-tuned model."""

    @abstractmethod
    def classes(self) -> Sequence[Sequence[int]]:
        """Return the classes in each training image."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return the facts about the data for results.json: fingerprint, train_images, test_images, classes."""

    @abstractmethod
    def pixels_in_words(self) -> str:
        """Return the size of training images, such as "crops of 256 px"."""

    def advice(self) -> str:
        """Return a sentence on how to make the steps faster if they are very slow on this machine, otherwise ""."""
        return ""

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
    ending: bool = True,
) -> Results:
    """Run the remaining trials, keep the weights of one of them, and return the table.

    Args:
        name: Name of the command.
        asked: Options of the command.
        plan: Plan of the task.
        starts: Starts to compare.
        notes: Notes on the data.
        marks: Values that affect the scores, in addition to options, weights, data and machine.
        ending: Whether to print what can be done next.
    """
    out, facts = Path(asked.out), plan.facts()
    starts, about_starts = distinct_starts(plan, starts, asked.seed)
    for sentence in about_starts:
        tell(sentence)
    glance = plan.glancing(GLANCED)

    def fit(trial: Trial, keep_in: Path | None) -> Fitted:
        torch.manual_seed(trial.seed)
        model, target = plan.model()
        plan.source.load(target, trial.start)
        steps = plan.options_for(trial).steps
        curve = Following(steps, partial(glanced, glance, model) if trial.seed == asked.seed else None)
        title = f"{pace.begin(trial.number)}: {trial.start}, {counted(len(trial.indices), 'image')}"
        with progress(title, steps) as advance:

            def on_step(step: int, loss: float) -> None:
                curve.stepped(step, loss)
                advance(1, pace.stepped(loss))

            plan.learn(model, trial, on_step)
        check_trained(model)
        with progress("measuring", facts["test_images"]) as advance:
            found = plan.measure(model, advance)
        if keep_in is not None:
            save_finished(keep_in, model, plan.task())
        return replace(found, curve=curve.curve())

    classes = cache(plan.classes)  # once for all seeds
    seeds = range(asked.seed, asked.seed + asked.seeds)
    grid = Grid(starts, asked.fraction, seeds, facts["train_images"], lambda seed: balanced_order(classes(), seed))
    grid.check()
    tell(trials_in_words(plan, grid))
    if plan.advice():
        tell(plan.advice())
    steps_of_trials = [plan.options_for(trial).steps for trial in grid.trials()]
    pace = Pace(steps_of_trials, ways=[*["fewer --seeds"] * (asked.seeds > 1), "a smaller --fraction"])
    decisive = (plan.source.constructor, weights_mark(plan.source), facts["fingerprint"], plan.where.mark(), *marks)
    table = run_trials(grid, fit=fit, out=out, mark=mark_of(asked, *decisive), ending=ending)
    write_examples(out, examples_of(plan, out))
    config = resolved(asked, plan.source, plan.where, plan.options_for(grid.whole()))
    judged = verdict(table.rows, per_image_of(table), steps=steps_of_trials)
    told = (*notes, *about_starts, *table.note(), *judged)
    details = table.details | {"curves": curves_of(table)}
    return Results(name, table.rows, config, facts, plan.where.device, told, details=details)


def trials_in_words(plan: FinetunePlan, grid: Grid) -> str:
    """Return a sentence with the steps, images, optimiser and learning rate of the trials, whoever chose them."""
    options = plan.options_for(grid.whole())
    steps = sorted({plan.options_for(trial).steps for trial in grid.trials()})
    length = counted(steps[-1], "step") if len(steps) == 1 else f"{steps[0]:,} to {counted(steps[-1], 'step')}"
    optimiser = {"adamw": "AdamW", "sgd": "SGD"}[options.optimiser]
    return (
        f"Each trial takes {length} of {counted(options.batch_size, 'image')} ({plan.pixels_in_words()}) with "
        f"{optimiser}, peak learning rate {options.lr:.3g}."
    )


def distinct_starts(plan: FinetunePlan, starts: Sequence[Start], seed: int) -> tuple[list[Start], list[str]]:
    """Leave out starts of the run that have the weights of a start without it, since their trials would be the same.

    With an encoder that pre-training kept frozen, "encoder" has the weights that the run started from, such as
    "imagenet".

    Returns:
        The remaining starts, and sentences on the starts that have such weights.
    """
    told = []
    began_from = plan.source.frozen_encoder_from()
    if "encoder" in starts and began_from is not None:
        told.append(
            f"Pre-training kept the encoder of {plan.source.run} frozen, so start encoder has the weights that the run "
            f"started from ({began_from})."
        )
    own = [start for start in starts if start in OF_A_RUN]
    others = [start for start in starts if start not in OF_A_RUN and start != "random"]
    if not own or not others:
        return list(starts), told

    def mark(start: Start) -> str:
        torch.manual_seed(seed)
        _, target = plan.model()
        plan.source.load(target, start)
        return content_mark(target)

    known = {mark(start): start for start in others}
    twins = {start: known[found] for start in own if (found := mark(start)) in known}
    told += [
        f"Start {start} is left out, because it has the same weights as start {other}."
        for start, other in twins.items()
    ]
    return [start for start in starts if start not in twins], told


def content_mark(model: nn.Module) -> str:
    """Return a hash of all weights and buffers of a model."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def examples_of(plan: FinetunePlan, out: Path) -> list[Example]:
    """Return images of a few test images with the predictions of the model in `out`."""
    model, _ = plan.model()
    load_weights(model, out)
    plan.where.place(model).eval()
    return plan.glancing(PICTURED).examples(model)


def evenly(total: int, most: int) -> list[int]:
    """Return at most `most` of `total` indices, evenly spaced.

    >>> evenly(10, 4)
    [0, 3, 6, 9]
    """
    count = min(total, most)
    return [round(place * (total - 1) / max(count - 1, 1)) for place in range(count)]


def glanced(plan: FinetunePlan, model: nn.Module) -> float | None:
    """Return the main score of a model during training, whose state is restored, or None if there is no score."""
    training = [module for module in model.modules() if module.training]
    try:
        return plan.measure(model, lambda done: None).main
    except DovetailError:  # for example, the images have no labelled pixels
        return None
    finally:
        model.eval()
        for module in training:
            module.training = True


def per_image_of(table: Table) -> dict[tuple[str, float], list[tuple[float, ...]]]:
    """Return the influence of each test image on the main score, by start and fraction, one list per seed."""
    return {cell: [one.per_image for one in some] for cell, some in table.found.items()}


def curves_of(table: Table) -> list[dict[str, Any]]:
    """Return the curves of the trials with the first seed: {start, fraction, loss, validation}."""
    return [
        {"start": start, "fraction": fraction, **vars(some[0].curve)} for (start, fraction), some in table.found.items()
    ]
