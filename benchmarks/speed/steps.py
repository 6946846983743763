"""A whole training step beside the bare arithmetic of its networks and heads, and DeCon's beside its base's.

    python -m benchmarks.speed.steps [--batch 8] [--rounds 5] [--rows NAME ...] [--out PAGE]

The bare arithmetic is the student's forward and backward pass and the teacher's forward pass, networks and heads, on
the same views in the same number format and memory layout; a whole step has losses, queues and centres, clipping, the
optimiser and the teacher's average besides. Views are made beforehand. On one thread, in bfloat16 where the processor
has it, seconds of the process; forms take turns. GFLOP are counted by PyTorch, for each image of a whole step: matrix
products and convolutions, two operations for a multiplication and an addition.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.adclr_cost import Setting, views_of
from benchmarks.speed.common import RESULTS, foot, ratio, take_turns
from dovetail.networks.build import build_network
from dovetail.networks.plain_attention import prefer_plain_attention
from dovetail.recipes.table import build
from dovetail.schedules import Moment
from dovetail.train.defaults import processor_has_bfloat16
from dovetail.train.learner import Learner
from dovetail.train.optimisers import build_optimiser, clip_gradients, rule_names, set_hyperparameters
from dovetail.train.step import is_convolutional
from dovetail.views.view import View

SIDE_PX = 224
# Heads of a size that trains on a processor: the small preset's.
SMALL: dict[str, Any] = {"hidden": 1024, "dim": 128}
SLOTS = SMALL | {"prototypes": 64}
POOLED, SAMPLED = {"decoder_grid": 28}, {"decoder_cells": 196, "decoder_hidden": 512}
SMP, TIMM = "smp/fpn/resnet18", "timm/resnet18+fpn"
NARROW = "smp.FPN(encoder_name='resnet18', decoder_pyramid_channels=128, decoder_segmentation_channels=64)"
ROWS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "simclr": ("simclr", "timm/resnet18", SMALL),
    "densecl": ("densecl", "timm/resnet18", SMALL | {"queue": 4096}),
    "slotcon": ("slotcon", SMP, SLOTS),
    "decon-sl, grid 28": ("decon-sl", SMP, SLOTS | POOLED),
    "decon-sl, 196 points": ("decon-sl", SMP, SLOTS | SAMPLED),
    "decon-sl, half as wide, 196 points": ("decon-sl", NARROW, SLOTS | SAMPLED),
    "slotcon, timm": ("slotcon", TIMM, SLOTS),
    "decon-sl, timm, grid 28": ("decon-sl", TIMM, SLOTS | POOLED),
    "decon-sl, timm, 196 points": ("decon-sl", TIMM, SLOTS | SAMPLED),
    "decon-ml, timm, 196 points": ("decon-ml", TIMM, SLOTS | SAMPLED),
    "dino": ("dino", "timm/vit_tiny_patch16_224", {"hidden": 1024, "prototypes": 4096, "local_crops": 6}),
}
BASES = {name: "slotcon, timm" if "timm" in name else "slotcon" for name in ROWS if name.startswith("decon")}
"""The row of the base that a row of DeCon's is compared with."""
NOW = Moment(10, 100, 10)


@dataclass(frozen=True)
class Form:
    """A learner with its optimiser and one batch of views."""

    learner: Learner
    optimiser: torch.optim.Optimizer
    views: Sequence[View]

    def bare(self) -> None:
        """Run the networks and heads alone, forward and backward."""
        with autocast():
            answers = self.learner.student_outputs(self.views)
            self.learner.teacher_outputs(self.views)
            tensors = [leaf for leaf in pytree.tree_leaves(answers) if isinstance(leaf, Tensor)]
            total = torch.stack([tensor.float().mean() for tensor in tensors]).sum()
        total.backward()
        self.optimiser.zero_grad(set_to_none=True)

    def whole(self) -> None:
        """Do one training step."""
        with autocast():
            total = self.learner(self.views, NOW).total
        total.backward()
        self.learner.update()
        spec = self.learner.recipe.optimiser
        set_hyperparameters(self.optimiser, spec, 1e-3, NOW)
        clip_gradients(self.optimiser, spec)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.learner.move_teacher(NOW)


def operations(form: Form) -> int:
    """Return the operations of a whole step."""
    with FlopCounterMode(display=False) as counter:
        form.whole()
    return counter.get_total_flops()


def autocast() -> AbstractContextManager[None]:
    """Return the number format of training on this processor."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=processor_has_bfloat16())


def form_of(name: str, batch: int) -> Form:
    """Return what a row trains."""
    torch.manual_seed(0)
    method, model, options = ROWS[name]
    network = build_network(model, image_size=SIDE_PX)
    recipe = build(method, network.taps, options)
    learner = Learner(recipe, network)
    views = views_of(recipe.views, Setting(model, batch, SIDE_PX, 0, 0, "cpu"))
    if is_convolutional(network):
        learner.to(memory_format=torch.channels_last)
    prefer_plain_attention(learner, sizes=[(SIDE_PX, SIDE_PX)])
    return Form(learner, build_optimiser(rule_names(learner), recipe.optimiser), views)


def table(rows: Sequence[str], seconds: Mapping[str, Sequence[float]], gflop: Mapping[str, float]) -> list[str]:
    """Return the lines of the table; rows of DeCon's say how many times its base's step theirs takes."""
    lines = [
        "| method | network | GFLOP | bare, s | whole step, s | whole / bare | whole / base's | GFLOP / base's |",
        "|---|---|" + "---:|" * 6,
    ]
    for name in rows:
        bare, whole = seconds[f"{name} bare"], seconds[f"{name} whole"]
        base = BASES.get(name)
        times, more = "", ""
        if base in rows:
            times, more = ratio(whole, seconds[f"{base} whole"]), f"{gflop[name] / gflop[str(base)]:.2f}"
        took = [f"{median(bare):.2f}", f"{median(whole):.2f}", ratio(whole, bare)]
        cells = [name.replace(", timm", ""), ROWS[name][1], f"{gflop[name]:.1f}", *took, times, more]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def main(arguments: Sequence[str]) -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.steps", description=__doc__)
    parser.add_argument("--batch", type=int, default=8, help="number of images per step")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds of all forms")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="rows of the table to measure")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed_steps.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    forms: dict[str, Callable[[], None]] = {}
    gflop: dict[str, float] = {}
    for name in options.rows:
        form = form_of(name, options.batch)
        forms |= {f"{name} bare": form.bare, f"{name} whole": form.whole}
        gflop[name] = operations(form) / options.batch / 1e9
    lines = table(options.rows, take_turns(forms, rounds=options.rounds), gflop)
    print("\n".join(lines), flush=True)
    about = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip()
    command = " ".join(["python -m benchmarks.speed.steps", *arguments])
    spread = "Ratios are medians of rounds, with the smallest and largest."
    text = f"# Whole steps and bare arithmetic\n\n{about} Batches of {options.batch} at {SIDE_PX} px. {spread}\n\n"
    text += "\n".join(lines) + "\n\n" + foot(command, "segmentation_models_pytorch")
    options.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
