"""One of several processes that train every method they are told of, as `torchrun` would start it: `ranks.py OUT`.

Reads names of methods, folders and strategies from its standard input, three a line, and answers each line when it is
done.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dovetail.distributed import rank, world_size
from dovetail.train.defaults import Settings
from dovetail.train.learner import Learner
from dovetail.views.plan import ViewPlan
from dovetail.views.points import with_points
from dovetail.views.view import View
from tests.tiny import make_views, tiny_learner
from tests.train.runs import Views, run, settings

GLOBAL_BATCH = 8
STEPS = 3


class Shares(Views):
    """This process's part of the views of a step; crops of the first `apart` images of all have nothing in common."""

    def __init__(self, plan: ViewPlan, chosen: Settings, *, apart: int = 0) -> None:
        super().__init__(plan, chosen)
        self.apart = apart

    def to_views(self, batch: int, device: torch.device) -> list[View]:
        share = self.settings.global_batch // world_size()
        rows = slice(rank() * share, (rank() + 1) * share)
        views = make_views(self.plan, batch=self.settings.global_batch, seed=batch, dtype=torch.float64)
        if self.apart:
            views = with_points(drawn_apart(views, self.apart), self.plan.points, np.random.default_rng(batch))
        return [part(view, rows) for view in views]


def drawn_apart(views: Sequence[View], count: int) -> list[View]:
    """Return two views of which the crops of the first `count` images lie at opposite corners of their image."""
    moved = []
    for view, corner in zip(views, (0.0, 0.6), strict=True):
        box = view.box.clone()
        box[:count] = 0.4 * box[:count] + corner
        moved.append(replace(view, box=box))
    return moved


def part(view: View, rows: slice) -> View:
    """Return some of a view's images."""
    return replace(view, **{name: value[rows] for name, value in vars(view).items() if isinstance(value, Tensor)})


def learner_of(method: str) -> Learner:
    """Return a learner in double precision without dropout, whose numbers would be every process's own.

    "METHOD@OPTIMISER" is a method with another optimiser, "METHOD-sampled" one of DeCon's with sampled cells.
    """
    name, _, optimiser = method.partition("@")
    sampled = {"decoder_cells": 24} if name.endswith("-sampled") else {}
    name = name.removesuffix("-sampled")
    learner = tiny_learner(name, **sampled)
    if optimiser:
        spec = replace(learner.recipe.optimiser, name=optimiser, clip_norm=0.5, clip_each_parameter=optimiser != "sgd")
        learner = Learner(replace(learner.recipe, optimiser=spec), learner.student.network)
    learner = learner.double()
    for branch in (learner.student, learner.teacher):
        if branch is not None:
            branch.network = branch.network.following(replace(branch.network.rules, lateral_dropout=None))
    return learner


def train(method: str, out: Path, *, devices: int, strategy: str = "auto") -> None:
    """Train a method for three steps in `out`, on so many processes with a batch of eight together.

    "METHOD:STEPS" freezes the encoder for so many steps; with "METHOD/IMAGES" so many images have crops that do not
    overlap.
    Goes on from a checkpoint where there is one; keeps that of every second step.
    """
    chosen = settings(
        devices=devices,
        batch_size=GLOBAL_BATCH // devices,
        epochs=STEPS,
        steps_per_epoch=1,
        keep_every_epochs=2,
        log_every_steps=1,
        sync_batch_norm=devices > 1,
        strategy=strategy,
    )
    method, _, apart = method.partition("/")
    method, _, frozen = method.partition(":")
    chosen = replace(chosen, freeze_encoder_epochs=float(frozen or 0))
    learner = learner_of(method)
    run(out, chosen, learner=learner, views=Shares(learner.recipe.views, chosen, apart=int(apart or 0)), resume=True)


def main() -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        method, folder, strategy = line.split()
        train(method, Path(sys.argv[1]) / folder, devices=int(os.environ["WORLD_SIZE"]), strategy=strategy)
        print(f"done {folder}", flush=True)


if __name__ == "__main__":
    main()
