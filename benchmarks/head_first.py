"""Whether training the head alone first helps a pre-trained decoder.

    python -m benchmarks.head_first --seeds 0

At first, a new head sends random gradients into a pre-trained decoder. Linear probing before fine-tuning (arXiv
2202.10054) avoids that. Each start is fine-tuned as in `python -m benchmarks.evidence --scale stamps`, and once more
with 80 steps of the head alone before it, at ten times the learning rate. The labelled images are those that settings
are chosen with; the test images are not read. Each score is a line of `results/head_first.jsonl`, and none is measured
twice. The page is written from all of them.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace

from benchmarks.evidence.__main__ import RESULTS as SCORES
from benchmarks.evidence.aside import Aside, Begun, Lines, begin
from benchmarks.evidence.measure import Bench
from benchmarks.evidence.rows import CONTINUED, IMAGENET, TARGETS_LONGER, Row
from benchmarks.evidence.scales import SCALES, Scale
from dovetail.downstream.segment.job import in_memory
from dovetail.downstream.segment.loop import confusion_matrix, finetune_segmentation

NAME = "head_first"
ROWS = (IMAGENET, CONTINUED, TARGETS_LONGER)
LABELS, STEPS, HEAD_STEPS, LR, HEAD_LR = 20, 240, 80, 1e-3, 1e-2


def main(arguments: Sequence[str]) -> int:
    """Measure what is missing and write the page."""
    return Aside(NAME, measured, page).main(arguments, __doc__, lambda options: study(options, SCALES["stamps"]))


def study(options: argparse.Namespace, scale: Scale) -> None:
    """Measure every row with every seed, plain and with the head first; known scores are kept."""
    cells = [(row, {"head_first": head_first}) for row in ROWS for head_first in (False, True)]
    Aside(NAME, measured, page).measure(options, scale, SCORES, cells)


def measured(bench: Bench, row: Row, seed: int, *, head_first: bool) -> dict[str, float]:
    """Return mIoU in [0, 1] on the images to choose with, after fine-tuning a row with 20 labelled images."""
    begun = begin(bench, row, seed, labels=LABELS, steps=STEPS, lr=LR)
    plan = begun.plan
    fine_tune(begun, seed, head_first=head_first)
    found = confusion_matrix(begun.model, in_memory(plan.data.val), plan.options, window=plan.window).scores().miou
    return {"miou": round(found, 6)}


def fine_tune(begun: Begun, seed: int, *, head_first: bool) -> None:
    """Fine-tune in place. The head's own steps replace half as many of the whole model, whose steps cost more."""
    model = begun.model
    options = replace(begun.plan.options, warmup_steps=STEPS // 4, seed=seed)
    if head_first:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        alone = {"encoder": 0.0, "decoder": 0.0}
        head = replace(options, steps=HEAD_STEPS, lr=HEAD_LR, warmup_steps=0, lr_scale=alone, seed=seed + 1000)
        finetune_segmentation(model, begun.train, head)
        for parameter in trained:
            parameter.requires_grad_(True)
        options = replace(options, steps=STEPS - HEAD_STEPS // 2, warmup_steps=20)
    finetune_segmentation(model, begun.train, options)


def page(known: Lines) -> str:
    """Return the page: mIoU of every row, plain and with the head first, and the mean paired difference."""
    lines = [
        "# Training the head alone first",
        "",
        f"mIoU in % on the images to choose with of `stamps`, after fine-tuning with {LABELS} labelled images: {STEPS} "
        f"steps, or {HEAD_STEPS} steps of the head alone at a rate of {HEAD_LR:g} and {STEPS - HEAD_STEPS // 2} of the "
        "whole model.",
        "",
        "| start | seeds | plain | head first | difference |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in ROWS:
        found = {(line["seed"], line["head_first"]): 100 * line["miou"] for line in known if line["row"] == row.name}
        seeds = sorted(seed for seed, first in found if first and (seed, False) in found)
        if seeds:
            plain, first = (statistics.fmean(found[seed, after] for seed in seeds) for after in (False, True))
            lines.append(f"| {row.name} | {len(seeds)} | {plain:.1f} | {first:.1f} | {first - plain:+.1f} |")
    return "\n".join([*lines, "", "Command: `python -m benchmarks.head_first`", ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
