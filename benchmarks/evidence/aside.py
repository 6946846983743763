"""What the small studies beside the main one share.

They fine-tune rows of the main study in ways that it does not have, to explain its scores. Only the images that
settings are chosen with are read. Each measurement is a line of a file, none is repeated, and the page is written from
all of them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.evidence.measure import Bench, weights
from benchmarks.evidence.records import Records
from benchmarks.evidence.rows import Row
from benchmarks.evidence.scales import Scale
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

RESULTS = Path(__file__).parents[1] / "results"

Lines = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Aside:
    """A small study.

    Attributes:
        name: Name of its module, and of its lines and its page in the folder of results.
        measured: Function of a bench, a row, a seed and a setting that returns the numbers of a line.
        page: Function of all lines that returns the page.
    """

    name: str
    measured: Callable[..., Mapping[str, float]]
    page: Callable[[Lines], str]

    def main(self, arguments: Sequence[str], about: str | None, study: Callable[[argparse.Namespace], None]) -> int:
        """Parse the command line and run `study`."""
        parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{self.name}", description=about)
        parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="seeds to measure")
        parser.add_argument("--cache", type=Path, default=default_cache(), help="folder of packages, scenes, weights")
        parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the measurements")
        try:
            study(parser.parse_args(arguments))
        except DovetailError as error:
            print(error, file=sys.stderr)
            return 1
        return 0

    def measure(
        self,
        options: argparse.Namespace,
        scale: Scale,
        scores: Path,
        cells: Iterable[tuple[Row, Mapping[str, Any]]],
    ) -> None:
        """Measure every row in its setting with every seed unless it is known, and write the page.

        Args:
            options: Options of the command line.
            scale: Sizes, with the pre-trainings of every scale that has the same images and sizes.
            scores: Folder of the main study's scores.
            cells: Rows and settings.
        """
        images = build(scale.images, options.cache, scale.plan)
        records = Records(scores / f"{scale.name}.jsonl", scale, images.fingerprint)
        bench = Bench(scale, images, records, options.cache / "runs")
        path = options.results / f"{self.name}.jsonl"
        known = read_lines(path, dict[str, Any])
        asked = [(seed, row, setting) for row, setting in cells for seed in options.seeds]
        for seed, row, setting in sorted(asked, key=lambda one: options.seeds.index(one[0])):
            cell = {"row": row.name, "seed": seed, **setting, "images": images.fingerprint}
            if not any(cell.items() <= line.items() for line in known):
                print(f"== {row.name}, seed {seed}, {setting} ==", flush=True)
                known.append({**cell, **self.measured(bench, row, seed, **setting)})
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(known[-1]) + "\n")
        (options.results / f"{self.name}.md").write_text(self.page(known), encoding="utf-8")


@dataclass(frozen=True)
class Begun:
    """A fine-tuning before its first step.

    Attributes:
        plan: Model, images and options.
        model: What is trained.
        target: The network within it that the weights were loaded into.
        random: The weights of `target` before.
        train: The labelled images.
    """

    plan: Plan
    model: nn.Module
    target: nn.Module
    random: Mapping[str, torch.Tensor]
    train: Any


def begin(bench: Bench, row: Row, seed: int, *, labels: int, steps: int, lr: float) -> Begun:
    """Return the fine-tuning of a row with a number of labelled images of those that settings are chosen with."""
    asked = FinetuneSegmentOptions(
        run=weights(bench, row, seed), data=bench.images.choose, steps=steps, lr=lr, seed=seed, **bench.scale.finetuning
    )
    plan = plan_of(asked, open_segmentation(asked.data))
    with torch.device("meta"):
        [start] = chosen_starts((row.starts[0],), plan.source, target=plan.model()[1])
    torch.manual_seed(seed)
    model, target = plan.model()
    random = {name: value.clone() for name, value in target.state_dict().items()}
    plan.source.load(target, start)
    data = plan.data.train
    order = balanced_order([data.classes_in(index) for index in range(len(data))], seed)
    return Begun(plan, model, target, random, in_memory(data).subset(list(order[:labels])))


def trained_scores(begun: Begun, seed: int) -> dict[str, float]:
    """Fine-tune in place; return mIoU in [0, 1] on the training images and the images to choose with."""
    plan, model = begun.plan, begun.model
    finetune_segmentation(model, begun.train, replace(plan.options, warmup_steps=plan.options.steps // 4, seed=seed))
    sides = {"train": begun.train, "choose": in_memory(plan.data.val)}
    scores = {name: confusion_matrix(model, images, plan.options, window=plan.window) for name, images in sides.items()}
    return {name: round(matrix.scores().miou, 6) for name, matrix in scores.items()}


def mean_scores(found: Lines, rank_digits: int) -> str:
    """Return the last cells of a table row: number of seeds, mean effective rank, and mean mIoU in %."""
    rank, *miou = (statistics.fmean(line[name] for line in found) for name in ("rank", "train", "choose"))
    return f"{len(found)} | {rank:.{rank_digits}f} | " + " | ".join(f"{100 * score:.1f}" for score in miou)
