"""Schedules against the values that official codes used at each iteration."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from dovetail.recipe import OptimiserSpec
from dovetail.schedules import Cosine, Moment, Schedule, value_at
from tests.golden.vectors import Comparison, Golden

VALUES = {"momentum_at_update", "lr_used_at_iteration", "values"}


def compare(what: str, schedule: Schedule, expected: Sequence[float], *, total: int, per_epoch: int) -> Comparison:
    ours = [value_at(schedule, Moment(step, total, per_epoch)) for step in range(len(expected))]
    return Comparison(what, torch.tensor(ours, dtype=torch.float64), torch.tensor(expected, dtype=torch.float64))


def rate(config: dict[str, Any]) -> Schedule:
    """The learning rate through `OptimiserSpec`, of either vocabulary."""
    peak = config["peak_lr"] if "peak_lr" in config else config["base"]
    multiplier = config.get("warmup_multiplier")
    dino = "start_warmup_value" in config
    start = config["start_warmup_value"] / peak if dino else (1 / multiplier if multiplier else 0.0)
    spec = OptimiserSpec(
        "sgd",
        base_lr=config.get("base_lr_per_256", peak),
        weight_decay=0.0,
        warmup_epochs=config.get("warmup_epochs", 0),
        warmup_start=start,
        final_lr=config["final"] if dino else config["eta_min"],
        peak_twice=dino,
    )
    if "base_lr_per_256" in config:
        assert spec.peak_lr(config["batch_size"]) == peak
    return spec.lr_schedule(peak)


def check(golden: Golden) -> Iterator[Comparison]:
    for name, case in golden.sidecar.items():
        if not isinstance(case, dict) or "config" not in case:
            continue
        config = case["config"]
        unknown = {key for key, value in case.items() if isinstance(value, list)} - VALUES
        if unknown:
            raise KeyError(f"{name} has values of an unknown kind: {', '.join(sorted(unknown))}")
        if "momentum_at_update" in case:
            total = config["total_updates_K"]
            schedule = Cosine(config["base"], 1.0)
            yield compare(name, schedule, case["momentum_at_update"], total=total, per_epoch=1)
            continue
        per_epoch = config["iters_per_epoch"]
        total = config["epochs"] * per_epoch
        if name.endswith("_lr") or "_lr_" in name:
            values = list(case["lr_used_at_iteration"] if "lr_used_at_iteration" in case else case["values"])
            if "lr_after_last_step" in case:
                values.append(case["lr_after_last_step"])
            yield compare(name, rate(config), values, total=total, per_epoch=per_epoch)
        else:
            schedule = Cosine(config["base"], config["final"])
            yield compare(name, schedule, case["values"], total=total, per_epoch=per_epoch)
