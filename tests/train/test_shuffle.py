"""Shuffled BatchNorm on two real processes."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from dovetail.train.shuffle import shuffled_across_ranks
from dovetail.views.view import View
from tests.tiny import make_views, tiny_learner

SHARE = 4


class Branch(nn.Module):
    """A convolution and a BatchNorm on the pixels; outputs as a learner's branch has them."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layers = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5, momentum=1.0))

    def forward(self, views: Sequence[View]) -> dict[str, list[Any]]:
        return {"encoder": [self.layers(view.pixels) for view in views], "none": [None]}


def worker(process: int, folder: str) -> None:
    """Run the branch on this process's half of the images, shuffled, and save what came out."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/together", rank=process, world_size=2)
    views = [share(view, process) for view in views_of_all()]
    found: dict[str, Tensor] = {}
    for name, training in (("eval", False), ("train", True)):
        branch = Branch().train(training)
        torch.manual_seed(10 * process)  # the order is one process's for both
        outputs = shuffled_across_ranks(branch, views)
        assert outputs["none"] == [None]
        found[name] = torch.stack(outputs["encoder"])
        found[f"{name} mean"] = branch.layers[1].running_mean
    torch.save(found, Path(folder) / f"{process}.pt")
    dist.destroy_process_group()


def views_of_all() -> list[View]:
    """Return both views of the images of both processes, with pixels as convolutions have them in memory."""
    apart = torch.arange(2 * SHARE)[:, None, None, None]
    views = make_views(tiny_learner("moco-v2").recipe.views, batch=2 * SHARE)
    return [replace(view, pixels=(view.pixels + apart).to(memory_format=torch.channels_last)) for view in views]


def share(view: View, process: int) -> View:
    """Return a process's images."""
    rows = slice(process * SHARE, (process + 1) * SHARE)
    parts: dict[str, Any] = {name: value[rows] for name, value in vars(view).items() if isinstance(value, Tensor)}
    return replace(view, **parts)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_outputs_come_back_and_statistics_are_of_images_from_both(tmp_path: Path) -> None:
    """In copies of this process, which have nothing to import."""
    torch.multiprocessing.start_processes(worker, (str(tmp_path),), nprocs=2, start_method="fork")
    found = [torch.load(tmp_path / f"{process}.pt") for process in range(2)]
    branch = Branch().eval()
    for process in range(2):
        expected = branch([share(view, process) for view in views_of_all()])["encoder"]
        torch.testing.assert_close(found[process]["eval"], torch.stack(expected))
        own = Branch().train()
        own([share(view, process) for view in views_of_all()])
        assert not torch.allclose(found[process]["train mean"], own.layers[1].running_mean, atol=1e-3)
    both = Branch().train()
    both(views_of_all())
    mean = (found[0]["train mean"] + found[1]["train mean"]) / 2
    torch.testing.assert_close(mean, both.layers[1].running_mean)
