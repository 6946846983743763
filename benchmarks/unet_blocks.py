"""Which part of a pre-trained Unet decoder helps or harms fine-tuning.

    python -m benchmarks.unet_blocks --seeds 3

A Unet's decoder has five blocks, from 256 channels at a stride of 16 to 16 channels at full resolution. Each start is
fine-tuned as in `python -m benchmarks.evidence --scale tabletop-fourth`, with all pre-trained blocks, with the first
three or the last two alone, and with none. What is left out keeps its random weights. The effective rank of the
decoder's map is measured first, over all cells of the training images; it is at most 16. The labelled images are those
that settings are chosen with; the test images are not read. Each measurement is a line of `results/unet_blocks.jsonl`,
and none is repeated. The page is written from all of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from benchmarks.decoder_mix import map_rank
from benchmarks.evidence.__main__ import RESULTS as SCORES
from benchmarks.evidence.aside import Aside, Lines, begin, mean_scores, trained_scores
from benchmarks.evidence.measure import Bench
from benchmarks.evidence.rows import UNETS, Row
from benchmarks.evidence.scales import SCALES, Scale

NAME = "unet_blocks"
IMAGENET, _, _, DECON, TARGETS = UNETS
ROWS = (IMAGENET, DECON, TARGETS)
KEPT: Mapping[str, tuple[int, ...]] = {
    "all blocks": (0, 1, 2, 3, 4),
    "first three blocks": (0, 1, 2),
    "last two blocks": (3, 4),
    "no block": (),
}
LABELS, STEPS, LR = 20, 240, 3e-3


def main(arguments: Sequence[str]) -> int:
    """Measure what is missing and write the page."""
    scale = SCALES["tabletop-fourth"]
    return Aside(NAME, measured, page).main(arguments, __doc__, lambda options: study(options, scale))


def study(options: argparse.Namespace, scale: Scale) -> None:
    """Measure every row with every part of its decoder and every seed; known measurements are kept."""
    cells = [(row, {"kept": kept}) for row in ROWS for kept in (KEPT if "all" in row.starts else ("no block",))]
    Aside(NAME, measured, page).measure(options, scale, SCORES, cells)


def measured(bench: Bench, row: Row, seed: int, kept: str) -> dict[str, float]:
    """Return the rank of the decoder's map, and mIoU in [0, 1] on training images and images to choose with."""
    begun = begin(bench, row, seed, labels=LABELS, steps=STEPS, lr=LR)
    keep_blocks(begun.target, begun.random, KEPT[kept])
    rank = map_rank(begun)
    return {"rank": round(rank, 2), **trained_scores(begun, seed)}


@torch.no_grad()
def keep_blocks(target: nn.Module, initial: Mapping[str, Tensor], kept: Sequence[int]) -> None:
    """Give the decoder's tensors their `initial` values in place, except in the blocks that are kept."""
    prefixes = tuple(f"decoder.blocks.{block}." for block in kept)
    for name, value in target.state_dict().items():
        if name.startswith("decoder.") and not name.startswith(prefixes):
            value.copy_(initial[name])


def page(known: Lines) -> str:
    """Return the page: for every row and part, the means over seeds."""
    lines = [
        "# Parts of a pre-trained Unet decoder",
        "",
        f"{STEPS} steps of fine-tuning with {LABELS} labelled images of rendered scenes, at a rate of {LR:g}. mIoU in "
        "% on the training images and on the images to choose with; effective rank of the decoder's map (16 channels) "
        "first. Means over seeds. The encoder is the pre-trained one in every line.",
        "",
        "| start | kept of the decoder | seeds | effective rank | mIoU, training | mIoU, choosing |",
        "| --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for row in ROWS:
        for kept in KEPT:
            found = [line for line in known if (line["row"], line["kept"]) == (row.name, kept)]
            if found:
                lines.append(f"| {row.name} | {kept} | {mean_scores(found, 1)} |")
    seeds = " ".join(str(seed) for seed in sorted({line["seed"] for line in known}))
    return "\n".join([*lines, "", f"Command: `python -m benchmarks.unet_blocks --seeds {seeds}`", ""])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
