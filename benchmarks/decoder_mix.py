"""Whether a pre-trained decoder mixed with random weights is a better start of a short fine-tuning than either.

    python -m benchmarks.decoder_mix --seeds 0 1

The map of a pre-trained decoder varies along fewer directions than that of a random one, and after 60 steps of fine-
tuning it fits the training images less well. Mixing the weights ("shrink and perturb", arXiv 1910.08475) brings the
directions back. Each start is fine-tuned as in `python -m benchmarks.evidence --scale brief`, with several shares of
the pre-trained weights in the decoder. The effective rank of the decoder's map is measured first, over all cells of the
training images; it is at most the number of channels. The labelled images are those that settings are chosen with; the
test images are not read. Each measurement is a line of `results/decoder_mix.jsonl`, and none is repeated. The page is
written from all of them.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.evidence.__main__ import RESULTS as SCORES
from benchmarks.evidence.__main__ import records_of
from benchmarks.evidence.measure import Bench, weights
from benchmarks.evidence.rows import CONTINUED, IMAGENET, SCALES, TARGETS_LONGER, Row, Scale
from benchmarks.head_first import LABELS
from benchmarks.scenes.fetch import default_cache
from benchmarks.scenes.sets import build
from dovetail.downstream.labels.readers import open_segmentation
from dovetail.downstream.labels.subsets import balanced_order
from dovetail.downstream.options import FinetuneSegmentOptions
from dovetail.downstream.segment.job import Plan, in_memory, plan_of
from dovetail.downstream.segment.loop import confusion_matrix, finetune_segmentation
from dovetail.downstream.start import chosen_starts
from dovetail.errors import DovetailError
from dovetail.files.schema import read_lines
from dovetail.train.monitors import effective_rank

RESULTS = Path(__file__).parent / "results"
LINES, PAGE = "decoder_mix.jsonl", "decoder_mix.md"
ROWS = (IMAGENET, CONTINUED, TARGETS_LONGER)
SHARES = (1.0, 0.7, 0.5, 0.3)
STEPS, LR = 60, 1e-3


def main(arguments: Sequence[str]) -> int:
    """Measure what is missing and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoder_mix", description=__doc__)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds to measure")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder for packages, scenes and weights")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the measurements")
    options = parser.parse_args(arguments)
    try:
        study(options, SCALES["brief"])
    except DovetailError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def study(options: argparse.Namespace, scale: Scale) -> None:
    """Measure every row with every share and seed; known measurements are kept."""
    images = build(scale.images, options.cache, scale.plan)
    bench = Bench(scale, images, records_of(SCORES, replace(scale, name=scale.images)), options.cache / "runs")
    path = options.results / LINES
    known = read_lines(path, dict[str, Any])
    for seed in options.seeds:
        for row in ROWS:
            for share in SHARES if "all" in row.starts else (1.0,):
                cell = {"row": row.name, "seed": seed, "share": share, "images": images.fingerprint}
                if not any(cell.items() <= line.items() for line in known):
                    print(f"== {row.name}, seed {seed}, share {share:g} ==", flush=True)
                    known.append(cell | measured(bench, row, seed, share))
                    with path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(known[-1]) + "\n")
    (options.results / PAGE).write_text(page(known), encoding="utf-8")


def measured(bench: Bench, row: Row, seed: int, share: float) -> dict[str, float]:
    """Return the rank of the decoder's map, and mIoU in [0, 1] on training images and images to choose with."""
    asked = FinetuneSegmentOptions(
        run=weights(bench, row, seed),
        data=bench.images.choose,
        steps=STEPS,
        lr=LR,
        seed=seed,
        **bench.scale.finetuning,
    )
    plan = plan_of(asked, open_segmentation(asked.data))
    with torch.device("meta"):
        [start] = chosen_starts((row.starts[0],), plan.source, target=plan.model()[1])
    torch.manual_seed(seed)
    model, target = plan.model()
    initial = {name: value.clone() for name, value in target.state_dict().items()}
    plan.source.load(target, start)
    mix(target, initial, share)
    data = plan.data.train
    order = balanced_order([data.classes_in(index) for index in range(len(data))], seed)
    train = in_memory(data).subset(list(order[:LABELS]))
    rank = map_rank(model, target, plan, train)
    finetune_segmentation(model, train, replace(plan.options, warmup_steps=STEPS // 4, seed=seed))
    found = {
        name: confusion_matrix(model, images, plan.options, window=plan.window).scores().miou
        for name, images in (("train", train), ("choose", in_memory(plan.data.val)))
    }
    return {"rank": round(rank, 2), **{name: round(miou, 6) for name, miou in found.items()}}


@torch.no_grad()
def mix(target: nn.Module, initial: Mapping[str, Tensor], share: float) -> None:
    """Mix the decoder's weights with `initial` ones in place, so that their norm stays; not biases and norms."""
    for name, weight in target.named_parameters():
        if name.startswith("decoder.") and weight.ndim > 1:
            weight.mul_(share).add_(initial[name], alpha=math.sqrt(1 - share**2))


def map_rank(model: nn.Module, target: nn.Module, plan: Plan, images: Any) -> float:
    """Return the effective rank of the decoder's map on labelled images, without training anything."""
    maps: list[Tensor] = []
    hook = target.get_submodule("decoder").register_forward_hook(lambda _, __, output: maps.append(output))
    confusion_matrix(model, images, plan.options, window=plan.window)
    hook.remove()
    return float(effective_rank(torch.cat([one.movedim(1, -1).flatten(0, -2) for one in maps])))


def page(known: Sequence[dict[str, Any]]) -> str:
    """Return the page: for every row and share, the means over seeds."""
    lines = [
        "# Pre-trained decoders mixed with random weights",
        "",
        f"{STEPS} steps of fine-tuning with {LABELS} labelled images of `stamps`. The share m is that of the "
        "pre-trained weights: m x pre-trained + sqrt(1 - m^2) x random. mIoU in % on the training images and on the "
        "images to choose with; effective rank of the decoder's map (128 channels) first. Means over seeds.",
        "",
        "| start | share | seeds | effective rank | mIoU, training images | mIoU, images to choose with |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in ROWS:
        for share in SHARES:
            found = [line for line in known if (line["row"], line["share"]) == (row.name, share)]
            if found:
                rank, train, choose = (
                    statistics.fmean(line[name] for line in found) for name in ("rank", "train", "choose")
                )
                lines.append(
                    f"| {row.name} | {share:g} | {len(found)} | {rank:.0f} | {100 * train:.1f} | {100 * choose:.1f} |"
                )
    return "\n".join([*lines, "", "Command: `python -m benchmarks.decoder_mix`", ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
