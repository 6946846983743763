"""Train in a folder on one or two processes with the same global batch: `two_processes.py OUT DEVICES`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import torch

from dovetail.distributed import rank, world_size
from dovetail.views.view import View
from tests.tiny import make_views, tiny_learner
from tests.train.runs import Views, run, settings


class Shares(Views):
    """This process's part of the views of a step."""

    def to_views(self, batch: int, device: torch.device) -> list[View]:
        share = self.settings.global_batch // world_size()
        rows = slice(rank() * share, (rank() + 1) * share)
        views = make_views(self.plan, batch=self.settings.global_batch, seed=batch)
        return [
            replace(
                view,
                pixels=view.pixels[rows],
                box=view.box[rows],
                flipped=view.flipped[rows],
                source_px=view.source_px[rows],
            )
            for view in views
        ]


def main() -> None:
    out, devices = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    chosen = settings(devices=devices, batch_size=8 // devices)
    learner = tiny_learner("densecl", model="timm/test_vit")  # no BatchNorm
    run(out, chosen, learner=learner, views=Shares(learner.recipe.views, chosen))


if __name__ == "__main__":
    main()
