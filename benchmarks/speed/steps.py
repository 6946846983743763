"""A whole training step beside the bare arithmetic of its networks and heads, and DeCon's beside its base's.

    python -m benchmarks.speed.steps [--batch 8] [--rounds 5] [--out benchmarks/results/speed_steps.md]

The bare arithmetic is the student's forward and backward pass and the teacher's forward pass, networks and heads, on
the same views in the same number format and memory layout; a whole step has losses, queues and centres, clipping, the
optimiser and the teacher's average besides. Views are made beforehand. On one thread, in bfloat16 where the processor
has it, seconds of the process; forms take turns.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

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
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "simclr": ("timm/resnet18", SMALL),
    "densecl": ("timm/resnet18", SMALL | {"queue": 4096}),
    "slotcon": ("smp/fpn/resnet18", SMALL | {"prototypes": 64}),
    "decon-sl": ("smp/fpn/resnet18", SMALL | {"prototypes": 64, "decoder_grid": 28}),
    "dino": ("timm/vit_tiny_patch16_224", {"hidden": 1024, "prototypes": 4096, "local_crops": 6}),
}
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
            answers = self.learner.answers(self.views)
            self.learner.targets(self.views)
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


def autocast() -> AbstractContextManager[None]:
    """Return the number format of training on this processor."""
    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=processor_has_bfloat16())


def form_of(method: str, batch: int) -> Form:
    """Return what a method trains."""
    torch.manual_seed(0)
    model, options = METHODS[method]
    network = build_network(model, image_size=SIDE_PX)
    recipe = build(method, network.taps, options)
    learner = Learner(recipe, network)
    views = views_of(recipe.views, Setting(model, batch, SIDE_PX, 0, 0, "cpu"))
    if is_convolutional(network):
        learner.to(memory_format=torch.channels_last)
    prefer_plain_attention(learner, side_px=SIDE_PX)
    return Form(learner, build_optimiser(rule_names(learner), recipe.optimiser), views)


def main(arguments: Sequence[str]) -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.steps", description=__doc__)
    parser.add_argument("--batch", type=int, default=8, help="photographs in a step")
    parser.add_argument("--rounds", type=int, default=5, help="of all forms")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed_steps.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lines = ["| method | network | bare, s | whole step, s | whole / bare |", "|---|---|---:|---:|---:|"]
    forms: dict[str, Callable[[], None]] = {}
    for method in METHODS:
        form = form_of(method, options.batch)
        forms |= {f"{method} bare": form.bare, f"{method} whole": form.whole}
    seconds = take_turns(forms, rounds=options.rounds)
    for method, (model, _) in METHODS.items():
        bare, whole = seconds[f"{method} bare"], seconds[f"{method} whole"]
        cells = [method, model, f"{median(bare):.2f}", f"{median(whole):.2f}", ratio(whole, bare)]
        lines.append(f"| {' | '.join(cells)} |")
    print("\n".join(lines), flush=True)
    whole = ratio(seconds["decon-sl whole"], seconds["slotcon whole"])
    bare = ratio(seconds["decon-sl bare"], seconds["slotcon bare"])
    decon = f"A whole step of decon-sl takes {whole} times slotcon's; its bare arithmetic takes {bare} times slotcon's."
    print(decon)
    about = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip()
    command = " ".join(["python -m benchmarks.speed.steps", *arguments])
    spread = "Ratios are medians of rounds, with the smallest and largest."
    text = f"# Whole steps and bare arithmetic\n\n{about} Batches of {options.batch} at {SIDE_PX} px. {spread}\n\n"
    text += "\n".join(lines) + f"\n\n{decon}\n\n" + foot(command, "segmentation_models_pytorch")
    options.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
