"""What users bring to training in Python: optimiser, schedule, callbacks, loggers, arguments of the Trainer."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.profilers import SimpleProfiler
from torch import nn

import dovetail
from dovetail.errors import DovetailError, RunError
from dovetail.networks.build import build_network
from dovetail.recipes.decoder_terms import decon
from dovetail.recipes.table import build
from dovetail.schedules import Moment, WarmupCosine, scaled, value_at
from dovetail.train.learner import Learner
from dovetail.train.optimisers import rule_names, set_hyperparameters
from dovetail.train.own import Own, trainer_arguments
from tests.data.photos import folder_of
from tests.tiny import tiny_learner, tiny_recipe

NADAM = functools.partial(torch.optim.NAdam, lr=3e-3, weight_decay=0.1)


@dataclass(frozen=True)
class Step:
    """A schedule of a user's own, without the fields of the built-in ones."""

    at: float

    def __call__(self, moment: Moment) -> float:
        return 1.0 if moment.progress < self.at else 0.5


def test_an_optimiser_from_outside_has_the_recipes_groups() -> None:
    own, learner = Own(NADAM), tiny_learner("simsiam")
    recipe = own.in_recipe(learner.recipe)
    assert own.defaults() == {"lr": 3e-3, "weight_decay": 0.1}
    optimiser = own.build(rule_names(learner), recipe.optimiser, learner.lr_scale)
    assert isinstance(optimiser, torch.optim.NAdam)
    moment = Moment(50, 100, 10)
    lr = Own(NADAM, Step(0.2)).rate(recipe.optimiser, 3e-3, moment)
    assert lr == pytest.approx(1.5e-3)
    set_hyperparameters(optimiser, recipe.optimiser, 3e-3, moment, lr)
    rates = {group["lr"] for group in optimiser.param_groups}
    assert rates == {1.5e-3, 3e-3}  # SimSiam's predictor keeps the peak
    assert {group["weight_decay"] for group in optimiser.param_groups} <= {0.1, 0.0}


def test_things_that_are_no_optimiser_are_refused() -> None:
    with pytest.raises(DovetailError, match="optimiser is 'adamw'; pass a function"):
        Own("adamw")  # type: ignore[arg-type]
    with pytest.raises(DovetailError, match="returns a list"):
        Own(lambda groups: groups).defaults()  # type: ignore[arg-type, return-value]


def test_arguments_of_the_trainer() -> None:
    assert trainer_arguments({"detect_anomaly": True}) == {"detect_anomaly": True}
    with pytest.raises(DovetailError, match="use the option accumulate"):
        trainer_arguments({"accumulate_grad_batches": 2})
    with pytest.raises(DovetailError, match="did you mean 'profiler'"):
        trainer_arguments({"profiller": "simple"})


def test_any_schedule_can_be_a_weight_under_decon() -> None:
    taps = build_network("timm/test_resnet+fpn", image_size=64).taps
    base = tiny_recipe("slotcon", taps)
    base = base.with_terms(*(replace(term, weight=Step(0.5)) for term in base.terms))
    weights = [term.weight for term in decon(base, taps, name="mine", alpha=0.25).terms]
    assert [value_at(weight, Moment(0, 10, 1)) for weight in weights] == [0.25, 0.75]
    assert [value_at(weight, Moment(9, 10, 1)) for weight in weights] == [0.125, 0.375]
    assert value_at(scaled(scaled(Step(0.5), 2.0), 3.0), Moment(9, 10, 1)) == 3.0


def test_layer_decay_gives_early_layers_smaller_rates() -> None:
    network = build_network("timm/test_resnet+fpn", image_size=64)
    recipe = build("decon-sl", network.taps, {"layer_decay": 0.5, "encoder_lr_scale": 0.1, "hidden": 16})
    learner = Learner(recipe, network)
    scales = {name: learner.lr_scale(name) for name in rule_names(learner)}
    inside = "network.model.encoder."
    stem = [value for name, value in scales.items() if name.startswith(inside) and ".layer" not in name]
    last = [value for name, value in scales.items() if ".encoder.layer4" in name or ".encoder.layers_3" in name]
    assert stem
    assert last
    assert stem == pytest.approx([0.1 * 0.5**5] * len(stem))
    assert last == pytest.approx([0.1 * 0.5] * len(last))
    assert {value for name, value in scales.items() if not name.startswith("network.model.encoder.")} == {1.0}
    with pytest.raises(DovetailError, match="layer_decay is 2; it must be above 0 and at most 1"):
        build("decon-sl", network.taps, {"layer_decay": 2.0})


class Counting(Callback):
    def __init__(self) -> None:
        self.steps = 0

    def on_train_batch_end(self, *_: Any) -> None:
        self.steps += 1


def test_a_run_takes_them_all(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    counting, profiler = Counting(), SimpleProfiler(dirpath=tmp_path / "profile", filename="steps")
    made: list[torch.optim.Optimizer] = []

    def optimiser(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        made.append(torch.optim.NAdam(groups, lr=3e-3, weight_decay=0.1))
        return made[-1]

    options: dict[str, Any] = {
        "model": nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8)),
        "encoder": "",
        "out": tmp_path / "run",
        "callbacks": [counting],
        "loggers": [CSVLogger(tmp_path / "csv")],
        "trainer_args": {"profiler": profiler},
        "optimiser": optimiser,
        "schedule": WarmupCosine(0.0, 1.0, 0.0, warmup_epochs=0.5),
        "log_every_steps": 1,
    }
    dovetail.pretrain(
        data=folder_of(tmp_path / "photos", 8),
        method="simsiam",
        image_size=32,
        batch_size=4,
        max_steps=4,
        workers=0,
        report_every_minutes=0.0,
        recipe={"hidden": 16, "dim": 8, "predictor_hidden": 8},
        **options,
    )
    assert counting.steps == 4
    assert list((tmp_path / "csv").rglob("metrics.csv"))
    assert (tmp_path / "profile").exists()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [line["lr"] for line in lines if "lr" in line]
    assert rates[:2] == [0.0, pytest.approx(3e-3)]
    assert {group["weight_decay"] for group in made[-1].param_groups} <= {0.1, 0.0}
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["lr"] == pytest.approx(3e-3)
    assert config["loggers"] == []
    assert not {"callbacks", "trainer_args", "optimiser", "schedule"} & config.keys()
    options.pop("loggers")
    options["callbacks"], options["trainer_args"] = [], None
    other = {**options, "optimiser": None}
    with pytest.raises(RunError, match="trained with the optimiser NAdam, but it is resumed with Sgd; pass the same"):
        dovetail.pretrain(resume=True, max_steps=5, **other)
    caplog.clear()
    assert dovetail.pretrain(resume=True, max_steps=5, **options).step == 5
    assert "a schedule=... of your own" not in caplog.text
    assert dovetail.pretrain(resume=True, max_steps=6, **{**options, "schedule": None}).step == 6
    assert "a schedule=... of your own, which is not passed now" in caplog.text
