"""Peak memory per image of the dense methods' heads and losses on a decoder's finest map.

    python -m benchmarks.dense_memory                 # writes benchmarks/results/dense_memory.md
    python -m benchmarks.dense_memory --methods densecl --image-size 128 --output /tmp/table.md

The map is p2 of an FPN, 256 channels at a quarter of the image's side (56 x 56 at 224 pixels), from one strided
convolution, so that nearly all memory is that of heads and losses. One step is: student and teacher on two views, loss,
backward, queues and centres, teacher. Each measurement is a process of its own; its peak is the resident one that the
system reports. Two batch sizes tell what an image adds from what is there anyway (PyTorch, weights, gradients, queues).

`decon-sl` is the whole of it: a ResNet-18 with smp's FPN, SlotCon on the encoder and on p2; its settings are those of
p2.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dovetail.networks.build import build_network
from dovetail.networks.network import Network
from dovetail.recipe import Cells, Recipe, Tap, Term
from dovetail.recipes import dense, slots
from dovetail.recipes.table import build
from dovetail.schedules import Moment
from dovetail.train.learner import Learner
from dovetail.views.plan import PointSpec
from dovetail.views.points import with_points
from dovetail.views.view import View

METHODS = dense.METHODS | slots.METHODS
WHOLE = "decon-sl"
MODEL = "smp/fpn/resnet18"
# Large enough that pieces of similarities are full at both; SlotCon has none, and takes minutes an image.
BATCHES = {"densecl": (4, 8), "pixpro": (4, 8), "slotcon": (1, 3), WHOLE: (1, 3)}
CHANNELS = 256
# glibc keeps freed blocks below a moving threshold of up to 32 MiB, which then count as resident.
RETURN_AT_ONCE = {"MALLOC_MMAP_THRESHOLD_": "262144", "MALLOC_TRIM_THRESHOLD_": "262144"}


@dataclass(frozen=True)
class Setting:
    """What is done about the size of the map; see `Term.cells` and `Term.checkpoint_head`.

    With `points` the whole method has `decoder_cells`; heads alone get maps sampled by the learner.
    """

    grid: int | None
    checkpoint_head: bool
    points: int | None = None

    @property
    def cells(self) -> Cells:
        """What a term says."""
        return Cells(grid=self.grid, points=self.points)


SETTINGS = {
    "plain": Setting(None, False),
    "checkpointed": Setting(None, True),
    "grid=28": Setting(28, False),
    "grid=28, checkpointed": Setting(28, True),
    "grid=14": Setting(14, False),
    "196 points": Setting(None, False, points=196),
}


class FinestMap(Network):
    """A network whose only tap is a map at stride 4."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Conv2d(3, CHANNELS, 4, stride=4)
        # Recipes put their term on the encoder's deepest map, which is this one.
        self.taps = {"p2": Tap(CHANNELS, 4, "map", "encoder")}
        self.encoder_prefix, self.decoder_prefixes, self.constructor = "", (), "torch.nn.Conv2d(3, 256, 4, stride=4)"

    def forward(self, view: View, taps: Collection[str]) -> dict[str, Tensor]:
        return {"p2": self.model(view.pixels)}


def recipe_for(method: str, setting: Setting, hidden: int | None) -> Recipe:
    """Return the method with its own widths (or another hidden width) on p2, under a setting."""
    taps = FinestMap().taps
    recipe = METHODS[method](taps) if hidden is None else METHODS[method](taps, hidden=hidden)
    (term,) = recipe.terms
    views = replace(recipe.views, points=points_of(term, setting))
    term = replace(term, cells=setting.cells, checkpoint_head=setting.checkpoint_head)
    return replace(recipe, terms=(term,), views=views)


def points_of(term: Term, setting: Setting) -> PointSpec | None:
    """Return the points that a term needs."""
    if setting.points is None:
        return None
    region = term.objective.points
    assert region is not None  # all of them can sample
    return PointSpec(setting.points, region)


def whole_recipe(network: Network, setting: Setting, hidden: int | None) -> Recipe:
    """Return DeCon-SL over SlotCon with its own widths (or another hidden width), p2 under a setting."""
    recipe = build(WHOLE, network.taps, {} if hidden is None else {"hidden": hidden})
    recipe = replace(recipe, views=replace(recipe.views, points=points_of(recipe.terms[1], setting)))
    encoder, decoder = recipe.terms
    decoder = replace(decoder, cells=setting.cells, checkpoint_head=setting.checkpoint_head)
    return recipe.with_terms(encoder, decoder)


def random_views(batch: int, image_size: int) -> list[View]:
    """Return two views of noise whose crops overlap."""
    boxes = [(0.0, 0.0, 0.8, 0.8), (0.2, 0.1, 1.0, 0.9)]
    return [
        View(
            pixels=torch.randn(batch, 3, image_size, image_size),
            box=torch.tensor([box]).expand(batch, 4),
            flipped=torch.zeros(batch, dtype=torch.bool),
            source_px=torch.full((batch, 2), 400.0),
        )
        for box in boxes
    ]


def peak_bytes(method: str, setting: Setting, batch: int, image_size: int, hidden: int | None) -> int:
    """Do one step in this process and return its resident peak."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if method == WHOLE:
        network = build_network(MODEL, image_size=image_size)
        learner = Learner(whole_recipe(network, setting, hidden), network)
    else:
        learner = Learner(recipe_for(method, setting, hidden), FinestMap())
    views = with_points(random_views(batch, image_size), learner.recipe.views.points, np.random.default_rng(0))
    moment = Moment(0, 1, 1)
    torch.autograd.backward(learner(views, moment).total)
    learner.update()
    learner.move_teacher(moment)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(method: str, name: str, batch: int, *, image_size: int, hidden: int | None = None) -> int:
    """Return `peak_bytes` from a fresh process."""
    command = [sys.executable, "-m", "benchmarks.dense_memory", "--image-size", str(image_size)]
    command += ["--measure", method, name, str(batch)]
    if hidden is not None:
        command += ["--hidden", str(hidden)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"} | RETURN_AT_ONCE
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return int(done.stdout.split()[-1])


def table(methods: list[str], settings: list[str], image_size: int, hidden: int | None) -> list[str]:
    """Return the lines of the table, one a method and setting."""
    lines = ["| method | setting | cells of the head | peaks, MiB | per image, MiB |", "|---|---|---:|---:|---:|"]
    for method in methods:
        few, many = BATCHES[method]
        for name in settings:
            setting = SETTINGS[name]
            side = min(setting.grid or image_size // 4, image_size // 4)
            cells = f"{side} x {side}" if setting.points is None else f"{setting.points}"
            peaks = [
                measure(method, name, batch, image_size=image_size, hidden=hidden) / 2**20 for batch in (few, many)
            ]
            each = (peaks[1] - peaks[0]) / (many - few)
            shown = f"{peaks[0]:.0f} at {few}, {peaks[1]:.0f} at {many} images"
            lines.append(f"| {method} | {name} | {cells} | {shown} | {each:.0f} |")
            print(lines[-1], flush=True)
    return lines


def report(lines: list[str], image_size: int, command: str) -> str:
    """Return the whole page."""
    side = image_size // 4
    return "\n".join(
        [
            "# Memory of the dense methods on a decoder's finest map",
            "",
            f"Heads and losses on a {side} x {side} x {CHANNELS} map ({image_size} pixels), two views, one training",
            "step, float32 on the CPU. An image's share is the difference between the two batch sizes, divided; the",
            "rest is PyTorch, weights, gradients, queues and pieces of similarities. DenseCL's similarities to the",
            "queue and PixPro's pairs of cells are computed in pieces of at most 2**25 and 2**24, and again in the",
            "backward pass, so beyond these they add nothing to an image's share. Freed memory goes back to the system",
            "at once; with the C library's own setting, peaks are higher by what it keeps.",
            "",
            f"decon-sl is the whole method, network included: SlotCon on the encoder and on p2 of {MODEL}; its",
            "settings are those of p2.",
            "",
            *lines,
            "",
            f"Command: `{command}`  ",
            f"Machine: {platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores, 1 thread  ",
            f"Versions: Python {platform.python_version()}, torch {torch.__version__}  ",
            f"Date: {date.today().isoformat()}",
            "",
        ]
    )


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Peak memory per image of the dense methods on a decoder's map.")
    parser.add_argument("--methods", nargs="+", choices=[*sorted(METHODS), WHOLE], default=[*sorted(METHODS), WHOLE])
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--hidden", type=int, help="hidden width of all heads; defaults to that of each method")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "dense_memory.md")
    parser.add_argument("--measure", nargs=3, metavar=("METHOD", "SETTING", "BATCH"), help="print one peak in bytes")
    options = parser.parse_args(arguments)
    if options.measure:
        method, name, batch = options.measure
        print(peak_bytes(method, SETTINGS[name], int(batch), options.image_size, options.hidden))
        return
    command = " ".join(["python -m benchmarks.dense_memory", *arguments])
    page = report(
        table(options.methods, options.settings, options.image_size, options.hidden), options.image_size, command
    )
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
