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
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.evidence.__main__ import RESULTS as SCORES
from benchmarks.evidence.__main__ import records_of
from benchmarks.evidence.measure import Bench, weights
from benchmarks.evidence.rows import CONTINUED, IMAGENET, SCALES, TARGETS_LONGER, Row, Scale
from benchmarks.scenes.fetch import default_cache
from benchmarks.scenes.sets import build
from benchmarks.scenes.write import SceneSet
from dovetail.downstream.labels.readers import open_segmentation
from dovetail.downstream.labels.subsets import balanced_order
from dovetail.downstream.options import FinetuneSegmentOptions
from dovetail.downstream.segment.job import Plan, in_memory, plan_of
from dovetail.downstream.segment.loop import confusion_matrix, finetune_segmentation
from dovetail.downstream.start import chosen_starts
from dovetail.errors import DovetailError
from dovetail.files.schema import read_lines

RESULTS = Path(__file__).parent / "results"
LINES, PAGE = "head_first.jsonl", "head_first.md"
ROWS = (IMAGENET, CONTINUED, TARGETS_LONGER)
LABELS, STEPS, HEAD_STEPS, LR, HEAD_LR = 20, 240, 80, 1e-3, 1e-2


def main(arguments: Sequence[str]) -> int:
    """Measure what is missing and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.head_first", description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds to measure")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder for packages, scenes and weights")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the scores")
    options = parser.parse_args(arguments)
    try:
        study(options, SCALES["stamps"])
    except DovetailError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def study(options: argparse.Namespace, scale: Scale) -> None:
    """Measure every row with every seed, plain and with the head first; known scores are kept."""
    images = build(scale.images, options.cache, scale.plan)
    bench = Bench(scale, images, records_of(SCORES, scale), options.cache / "runs")
    path = options.results / LINES
    known = read_lines(path, dict[str, Any])
    for seed in options.seeds:
        for row in ROWS:
            for head_first in (False, True):
                cell = {"row": row.name, "seed": seed, "head_first": head_first, "images": images.fingerprint}
                if not any(cell.items() <= line.items() for line in known):
                    print(f"== {row.name}, seed {seed}{', head first' if head_first else ''} ==", flush=True)
                    known.append(cell | {"miou": round(score(bench, images, row, seed, head_first=head_first), 6)})
                    with path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(known[-1]) + "\n")
    (options.results / PAGE).write_text(page(known), encoding="utf-8")


def score(bench: Bench, images: SceneSet, row: Row, seed: int, *, head_first: bool) -> float:
    """Return mIoU in [0, 1] on the images to choose with, after fine-tuning a row with 20 labelled images."""
    asked = FinetuneSegmentOptions(
        run=weights(bench, row, seed), data=images.choose, steps=STEPS, lr=LR, seed=seed, **bench.scale.finetuning
    )
    plan = plan_of(asked, open_segmentation(asked.data))
    with torch.device("meta"):
        [start] = chosen_starts((row.starts[0],), plan.source, target=plan.model()[1])
    torch.manual_seed(seed)
    model, target = plan.model()
    plan.source.load(target, start)
    fine_tune(model, plan, seed, head_first=head_first)
    return confusion_matrix(model, in_memory(plan.data.val), plan.options, window=plan.window).scores().miou


def fine_tune(model: nn.Module, plan: Plan, seed: int, *, head_first: bool) -> None:
    """Fine-tune in place. The head's own steps replace half as many of the whole model, whose steps cost more."""
    data = plan.data.train
    order = balanced_order([data.classes_in(index) for index in range(len(data))], seed)
    train = in_memory(data).subset(list(order[:LABELS]))
    options = replace(plan.options, warmup_steps=STEPS // 4, seed=seed)
    if head_first:
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        alone = {"encoder": 0.0, "decoder": 0.0}
        head = replace(options, steps=HEAD_STEPS, lr=HEAD_LR, warmup_steps=0, lr_scale=alone, seed=seed + 1000)
        finetune_segmentation(model, train, head)
        for parameter in trained:
            parameter.requires_grad_(True)
        options = replace(options, steps=STEPS - HEAD_STEPS // 2, warmup_steps=20)
    finetune_segmentation(model, train, options)


def page(known: Sequence[dict[str, Any]]) -> str:
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
