"""Tiny whole runs for the tests of the engine: a learner of the table, views that are a function of the step."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from dovetail.recipe import LateralDropout
from dovetail.train.defaults import Settings
from dovetail.train.engine import Result, train
from dovetail.train.learner import Learner
from dovetail.views.plan import ViewPlan
from dovetail.views.view import View
from tests.tiny import make_views, tiny_learner

EIGHT = {"batch_size": 8, "num_images": 25}  # for readings of the vectors of a step: fewer of them have none


def settings(**changes: Any) -> Settings:
    """Return settings of a run of 6 steps of 4 images, in two epochs."""
    start = Settings(
        seed=3,
        num_images=13,
        accelerator="cpu",
        devices=1,
        num_nodes=1,
        batch_size=4,
        accumulate=1,
        epochs=2,
        steps_per_epoch=3,
        lr=0.05,
        precision="32-true",
        workers=0,
        log_every_steps=2,
    )
    return replace(start, **changes)


class Views:
    """Views of every step: `batches` numbers the micro-batches, `to_views` draws noise from the number."""

    def __init__(self, plan: ViewPlan, chosen: Settings) -> None:
        self.plan = plan
        self.settings = chosen

    def batches(self, first_step: int) -> Iterator[int]:
        """Yield the numbers of the micro-batches from `first_step` on."""
        each = self.settings.accumulate
        yield from range(first_step * each, self.settings.total_steps * each)

    def to_views(self, batch: int, device: torch.device) -> list[View]:
        """Return views that depend on the batch's number and on the step's random numbers."""
        views = make_views(self.plan, batch=self.settings.batch_size, seed=batch)
        return [replace(view, pixels=view.pixels + 0.01 * torch.randn(view.pixels.shape)).to(device) for view in views]


def learner_with_dropout(method: str = "decon-sl") -> Learner:
    """Return a learner whose forward pass draws random numbers."""
    learner = tiny_learner(method)
    network = learner.student.network
    if network.rules.lateral_dropout is None:
        learner.student.network = network.following(replace(network.rules, lateral_dropout=LateralDropout(0.5)))
    return learner


def run(
    out: Path,
    chosen: Settings,
    *,
    learner: Learner | None = None,
    resume: bool = False,
    views: Views | None = None,
    profile: int = 0,
    loggers: Sequence[Logger] = (),
) -> tuple[Learner, Result]:
    """Train a fresh tiny learner in `out` and return it with the result."""
    learner = learner_with_dropout() if learner is None else learner
    source = views or Views(learner.recipe.views, chosen)
    result = train(
        learner,
        batches=source.batches,
        to_views=source.to_views,
        settings=chosen,
        out=out,
        resume=resume,
        profile=profile,
        loggers=loggers,
    )
    return learner, result


def differing(a: dict[str, Tensor], b: dict[str, Tensor]) -> list[str]:
    """Return the names of entries that are not equal bit for bit."""
    assert a.keys() == b.keys()
    return [name for name in a if not torch.equal(a[name], b[name])]


def main() -> None:
    """Train in the folder of the first argument, going on where it stands: what the tests kill."""
    torch.set_num_threads(1)
    run(Path(sys.argv[1]), settings(epochs=int(sys.argv[2]), save_every_steps=1), resume=True)


if __name__ == "__main__":
    main()
