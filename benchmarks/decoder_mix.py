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
import math
import sys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from benchmarks.evidence.__main__ import RESULTS as SCORES
from benchmarks.evidence.aside import Aside, Begun, Lines, begin, mean_scores, trained_scores
from benchmarks.evidence.measure import Bench
from benchmarks.evidence.rows import CONTINUED, IMAGENET, TARGETS_LONGER, Row
from benchmarks.evidence.scales import SCALES, Scale
from dovetail.downstream.segment.loop import confusion_matrix
from dovetail.train.monitors import effective_rank

NAME = "decoder_mix"
ROWS = (IMAGENET, CONTINUED, TARGETS_LONGER)
SHARES = (1.0, 0.7, 0.5, 0.3)
LABELS, STEPS, LR = 20, 60, 1e-3


def main(arguments: Sequence[str]) -> int:
    """Measure what is missing and write the page."""
    return Aside(NAME, measured, page).main(arguments, __doc__, lambda options: study(options, SCALES["brief"]))


def study(options: argparse.Namespace, scale: Scale) -> None:
    """Measure every row with every share and seed; known measurements are kept."""
    cells = [(row, {"share": share}) for row in ROWS for share in (SHARES if "all" in row.starts else (1.0,))]
    Aside(NAME, measured, page).measure(options, scale, SCORES, cells)


def measured(bench: Bench, row: Row, seed: int, share: float) -> dict[str, float]:
    """Return the rank of the decoder's map, and mIoU in [0, 1] on training images and images to choose with."""
    begun = begin(bench, row, seed, labels=LABELS, steps=STEPS, lr=LR)
    mix(begun.target, begun.random, share)
    rank = map_rank(begun)
    return {"rank": round(rank, 2), **trained_scores(begun, seed)}


@torch.no_grad()
def mix(target: nn.Module, initial: Mapping[str, Tensor], share: float) -> None:
    """Mix the decoder's weights with `initial` ones in place, so that their norm stays; not biases and norms."""
    for name, weight in target.named_parameters():
        if name.startswith("decoder.") and weight.ndim > 1:
            weight.mul_(share).add_(initial[name], alpha=math.sqrt(1 - share**2))


def map_rank(begun: Begun) -> float:
    """Return the effective rank of the decoder's map on the labelled images, without training anything."""
    maps: list[Tensor] = []
    hook = begun.target.get_submodule("decoder").register_forward_hook(lambda _, __, output: maps.append(output))
    confusion_matrix(begun.model, begun.train, begun.plan.options, window=begun.plan.window)
    hook.remove()
    return float(effective_rank(torch.cat([one.movedim(1, -1).flatten(0, -2) for one in maps])))


def page(known: Lines) -> str:
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
                lines.append(f"| {row.name} | {share:g} | {mean_scores(found, 0)} |")
    return "\n".join([*lines, "", "Command: `python -m benchmarks.decoder_mix`", ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
