"""Cost of ADCLR's queries: a training step compared with DINO's on the same views, and with a dense mask.

    python -m benchmarks.adclr_cost                    # writes benchmarks/results/adclr_cost.md
    python -m benchmarks.adclr_cost --prototypes 65536 --batch 64 --device cuda --output /tmp/table.md

The head has iBOT's 8,192 prototypes. With DINO's 65,536 prototypes every query costs more in the head. A second call of
the head adds a constant cost, which is visible with a few images per step.

A step is: teacher, student, losses, backward, centres, AdamW, moving the teacher. The forms take turns, so that what
else the machine does falls on all of them; each ratio is to DINO's step of the same round, and the median of rounds is
shown. Time on a processor is the process's own, on one thread. Peak memory is of one step in a process of its own:
the resident size that it adds, or on a GPU what PyTorch allocated. The dense mask sends raw tokens and queries
through timm's blocks as one sequence under a boolean mask of (T + S) x (T + S): the same numbers by the slow way.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from torch import Tensor, nn

from dovetail.networks.vit import ViTNetwork, build_vit
from dovetail.networks.vit_attention import Rotations
from dovetail.recipes.query_terms import adclr
from dovetail.recipes.tokens import dino
from dovetail.schedules import Moment
from dovetail.train.learner import Learner
from dovetail.views.plan import ViewPlan
from dovetail.views.points import with_points
from dovetail.views.view import View

MIB = 2**20
COUNTS = (1, 10, 50)


class Setting(NamedTuple):
    """What is measured, the same for all forms."""

    model: str
    batch: int
    image_size: int
    local_crops: int
    prototypes: int
    device: str


class Form(NamedTuple):
    """DINO (no queries), or ADCLR with `queries` in two streams or under a dense mask."""

    queries: int
    dense: bool = False

    def __str__(self) -> str:
        if not self.queries:
            return "DINO"
        return f"ADCLR, S = {self.queries}" + (", dense mask" if self.dense else "")


FORMS = (Form(0), *(Form(count, dense) for count in COUNTS for dense in (False, True)))


class DenseMaskViT(ViTNetwork):
    """Raw tokens and queries as one sequence under a mask."""

    def through_block(self, block: nn.Module, raw: Tensor, queries: Tensor | None, rotations: Rotations) -> Any:
        """Run one block of timm on the joint sequence."""
        if queries is None:
            return super().through_block(block, raw, queries, rotations)
        count, length = raw.shape[1], raw.shape[1] + queries.shape[1]
        mask = torch.eye(length, dtype=torch.bool, device=raw.device)
        mask[:, :count] = True
        joint = block(torch.cat([raw, queries], dim=1), attn_mask=mask)
        return joint[:, :count], joint[:, count:]


def views_of(plan: ViewPlan, setting: Setting) -> list[View]:
    """Return views of noise that fit the plan."""
    views = []
    for spec in plan.views:
        queries = None
        if plan.queries is not None and spec.role == "global":
            size = plan.queries.size_px
            queries = torch.randn(setting.batch, plan.queries.count, 3, size, size)
        view = View(
            pixels=torch.randn(setting.batch, 3, *spec.sides),
            box=torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(setting.batch, 1),
            flipped=torch.zeros(setting.batch, dtype=torch.bool),
            source_px=torch.full((setting.batch, 2), 256.0),
            role=spec.role,
            queries=queries,
        )
        views.append(view.to(setting.device))
    return with_points(views, plan.points, np.random.default_rng(0))


def step_of(form: Form, setting: Setting) -> Callable[[], None]:
    """Return a function that does one training step of a form."""
    torch.manual_seed(0)
    network = build_vit(setting.model, image_size=setting.image_size, drop_path=0.1)
    if form.dense:
        network = DenseMaskViT(network.model, construction=None)
    recipe = dino(
        network.taps, image_size=setting.image_size, local_crops=setting.local_crops, prototypes=setting.prototypes
    )
    if form.queries:
        recipe = adclr(recipe, network.taps, queries=form.queries)
    learner = Learner(recipe, network).to(setting.device)
    views, moment = views_of(recipe.views, setting), Moment(1, 100, 10)
    optimiser = torch.optim.AdamW(parameter for parameter in learner.parameters() if parameter.requires_grad)
    device = torch.device(setting.device).type

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = learner(views, moment).total
        loss.backward()
        learner.update()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        learner.move_teacher(moment)

    return step


def seconds_of(step: Callable[[], None], device: str) -> float:
    """Return the time of one step: of the device, or of this process on a processor."""
    if torch.device(device).type == "cpu":
        start = time.process_time()
        step()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def prepare() -> None:
    """Compute as in training: TF32 where autocast leaves float32; one thread on a processor."""
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")


def times_of(setting: Setting, rounds: int) -> dict[Form, list[float]]:
    """Return every form's seconds in every round, the forms taking turns, after one round that does not count."""
    steps = {form: step_of(form, setting) for form in FORMS}
    seconds: dict[Form, list[float]] = {form: [] for form in FORMS}
    for number in range(rounds + 1):
        for form, step in steps.items():
            taken = seconds_of(step, setting.device)
            if number:
                seconds[form].append(taken)
    return seconds


def peak_here(form: Form, setting: Setting) -> int:
    """Do one step in this process and return the bytes that it added to the peak."""
    step = step_of(form, setting)
    if torch.device(setting.device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew, as building the learner had one of its own
    before = resident("VmHWM")  # the size in use; VmRSS, which the kernel counts loosely, may be above it
    step()
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Return a size of this process in bytes, such as its peak (VmHWM); Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


def peak_of(form: Form, setting: Setting) -> float:
    """Return MiB of `peak_here` from a fresh process."""
    command = [sys.executable, "-m", "benchmarks.adclr_cost", "--measure", str(form.queries), str(int(form.dense))]
    for name, value in setting._asdict().items():
        command += [f"--{name.replace('_', '-')}", str(value)]
    # A fixed threshold makes glibc give freed tensors back at once, so that the peak is what is in use together.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(MIB)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
    return int(done.stdout.split()[-1]) / MIB


def table(setting: Setting, rounds: int) -> list[str]:
    """Return the lines of the table, one a form."""
    seconds = times_of(setting, rounds)
    lines = ["| step | seconds | ratio to DINO, median (least to most) | peak memory, MiB |", "|---|---:|---:|---:|"]
    for form in FORMS:
        ratios = [taken / base for taken, base in zip(seconds[form], seconds[FORMS[0]], strict=True)]
        spread = f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        lines.append(f"| {form} | {median(seconds[form]):.3f} | {spread} | {peak_of(form, setting):.0f} |")
        print(lines[-1], flush=True)
    return lines


def machine(device: str) -> str:
    """Return the machine in words."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, one thread"


def report(setting: Setting, rounds: int, lines: list[str], command: str) -> str:
    """Return the whole page."""
    precision = "bfloat16 autocast" if torch.device(setting.device).type == "cuda" else "float32"
    views = f"two views of {setting.image_size} px and {setting.local_crops} of 96 px"
    return "\n".join(
        [
            "# What ADCLR's queries cost",
            "",
            f"A training step of {setting.model}, {setting.batch} photographs, {views},",
            f"{setting.prototypes} prototypes, {precision}; {rounds} rounds in turn.",
            "See `benchmarks/adclr_cost.py` for what is counted.",
            "",
            *lines,
            "",
            f"* Machine: {machine(setting.device)}; {platform.system()}, Python {platform.python_version()}, "
            f"PyTorch {torch.__version__}, timm {timm.__version__}.",
            f"* Command: `{command}`, {date.today().isoformat()}.",
            "",
        ]
    )


def main(arguments: list[str]) -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--local-crops", type=int, default=8)
    parser.add_argument("--prototypes", type=int, default=8192)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "adclr_cost.md")
    parser.add_argument("--measure", nargs=2, type=int, metavar=("QUERIES", "DENSE"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    setting = Setting(*(getattr(given, name) for name in Setting._fields))
    prepare()
    if given.measure:
        print(peak_here(Form(given.measure[0], bool(given.measure[1])), setting))
        return 0
    lines = table(setting, given.rounds)
    command = " ".join(["python -m benchmarks.adclr_cost", *arguments])
    given.output.parent.mkdir(parents=True, exist_ok=True)
    given.output.write_text(report(setting, given.rounds, lines, command), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
