"""Fused attention against the plain three operations, whole ViTs forward and backward, bfloat16 on one thread.

    python -m benchmarks.speed.attention [--rounds 5] [--out benchmarks/results/speed_attention.md]

Both forms are the same timm model with `fused_attn` on and off, and take turns. Seconds are of the process.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import NamedTuple

import timm
import torch
from torch import Tensor, nn

from benchmarks.speed.common import RESULTS, foot, ratio, take_turns


class Case(NamedTuple):
    """A model on a batch of images of one size."""

    model: str
    side_px: int
    batch: int


CASES = (
    Case("vit_tiny_patch16_224", 96, 32),
    Case("vit_tiny_patch16_224", 224, 16),
    Case("vit_tiny_patch16_224", 384, 4),
    Case("vit_small_patch16_224", 224, 8),
    Case("vit_small_patch8_224", 224, 2),
)


def step(model: nn.Module, images: Tensor) -> None:
    """Forward and backward of the mean square of the features."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(images).float().square().mean()
    loss.backward()
    model.zero_grad(set_to_none=True)


def form(case: Case, *, fused: bool) -> Callable[[], None]:
    """Return a step of one form."""
    torch.manual_seed(0)
    model = timm.create_model(case.model, num_classes=0, dynamic_img_size=True)
    for block in model.blocks:
        block.attn.fused_attn = fused
    return partial(step, model, torch.randn(case.batch, 3, case.side_px, case.side_px))


def main(arguments: list[str]) -> int:
    """Measure every case and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.attention", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds of both forms")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed_attention.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lines = ["| model | image | batch | fused, s | plain, s | fused / plain |", "|---|---:|---:|---:|---:|---:|"]
    for case in CASES:
        seconds = take_turns({"fused": form(case, fused=True), "plain": form(case, fused=False)}, rounds=options.rounds)
        fused, plain = seconds["fused"], seconds["plain"]
        cells = [case.model, f"{case.side_px} px", str(case.batch), f"{median(fused):.2f}", f"{median(plain):.2f}"]
        lines.append(f"| {' | '.join(cells)} | {ratio(fused, plain)} |")
        print(lines[-1], flush=True)
    title, _, about = (__doc__ or "").partition("\n\n")
    about = about.partition("\n\n")[2].strip()
    command = " ".join(["python -m benchmarks.speed.attention", *arguments])
    spread = "The ratio is the median of rounds, with the smallest and largest."
    text = f"# Attention on a processor\n\n{title}\n\n{about} {spread}\n\n"
    options.out.write_text(text + "\n".join(lines) + "\n\n" + foot(command), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
