"""Does every method learn? Runs of seconds on textures, scored by a linear classifier of pixels on frozen features.

    python -m benchmarks.toy [--methods simclr decon-sl ...] [--seeds 3] [--out benchmarks/results/toy.md]

The images are 512 tiles of 96 px with one texture each, from the left halves of the images in scikit-image's wheel (see
`benchmarks.demo.mosaics`). The probe uses mosaics of them at other scales, contrasts and brightnesses, similar to the
methods' augmentations. Its classifier is fitted on left halves and scored on right quarters, which were never used for
training. Every method must beat a randomly initialised network of the same architecture and seed by its margin. This
shows that a method learns, not how good its features are at scale.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import numpy as np
import timm
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

import dovetail
from benchmarks.demo.mosaics import TEXTURES, MosaicPlan, Split, mosaic, read_textures
from benchmarks.probe import ProbeData, probe, probe_groups
from dovetail.downstream.labels.labelled import InMemory, Labelled
from dovetail.errors import unknown_name
from dovetail.networks.build import build_network
from dovetail.networks.decoders import EncoderFPN
from dovetail.networks.vit_embed import sincos_grid
from dovetail.networks.vit_fpn import ViTFPN

TILE_PX = 96
TILES = 512  # 16 steps of 32 in an epoch
PROBE_PX = 64
LABELLED = 64
TEST = 96
FPN_CHANNELS = 32

Architecture = Literal["cnn", "vit", "vit, fixed positions"]

# Heads as small as the task, rates that move the weights within a few hundred steps, and a teacher that leaves its
# random start within them. LARS does not adapt one-dimensional tensors: at such a rate they need one of their own.
CNN: dict[str, Any] = {"image_size": 64, "hidden": 128, "dim": 64, "min_scale": 0.3, "blur_px": 0.5}
LARS: dict[str, Any] = CNN | {"base_lr": 24.0, "bias_lr": 0.24, "warmup_epochs": 1.5}
SGD: dict[str, Any] = CNN | {"base_lr": 0.5}
MOVING: dict[str, Any] = {"momentum": 0.9}
SLOTS: dict[str, Any] = LARS | MOVING | {"prototypes": 16}
# Segments of a fraction of a tile.
SEGMENTS: dict[str, Any] = LARS | MOVING | {"segment_scale": 50.0, "segment_min_px": 200}
QUEUE: dict[str, Any] = SGD | MOVING | {"queue": 256}
# Crops that overlap now and then, so that the texture is what is common to both. A few hundred steps are too few for
# the slow balance of centring and sharpening: without a sharper teacher, a quicker centre and BatchNorm in the head,
# the teacher's distributions are uniform after a hundred steps and stay so.
TOKENS: dict[str, Any] = {
    "image_size": 64,
    "global_scale": (0.15, 0.5),
    "local_crops": 0,
    "hidden": 64,
    "bottleneck": 32,
    "prototypes": 128,
    "blur_px": 0.0,
    "head_norm": True,
    "teacher_temperature": 0.01,
    "warmup_temperature": 0.01,
    "centre_momentum": 0.6,
    "momentum": 0.95,
    "base_lr": 1.6e-2,
    "warmup_epochs": 4.0,
    "final_weight_decay": 0.04,
    "frozen_epochs": 0,
}
# Views of a quarter as many tokens, of which there can be more in the same time.
SMALLER: dict[str, Any] = {"image_size": 32, "global_scale": (0.12, 0.3)}
MASKED: dict[str, Any] = TOKENS | {"teacher_patch_temperature": 0.01, "patch_centre_momentum": 0.6}
QUERIES: dict[str, Any] = {"queries": 4, "query_centre_momentum": 0.6}
MASKED_QUERIES: dict[str, Any] = {
    "query_size": 24,
    "query_centre_momentum": 0.6,
    "teacher_query_temperature": 0.01,
    "query_blur_px": 0.0,
}
DECODER: dict[str, Any] = {"decoder_grid": 16}
# SelfPatch's aggregation is made for wide ViTs; see the option.
AGGREGATED: dict[str, Any] = {
    "patch_prototypes": 128,
    "head_channels": 32,
    "head_init_std": 0.125,
    "aggregation_blocks": 1,
}
POOLED: dict[str, Any] = {"decoder_hidden": 64, "decoder_dim": 32, "decoder_grid": 16, "levels": "p2"}
DECODED: dict[str, Any] = {
    "decoder_hidden": 64,
    "decoder_dim": 32,
    "decoder_prototypes": 16,
    "decoder_teacher_temperature": 0.02,
    "decoder_grid": 16,
    "levels": "p2",
}


@dataclass(frozen=True, eq=False)
class Trial:
    """A short run of a method, and what it must reach.

    Attributes:
        method: Name of the method.
        architecture: Of the network, which has a feature pyramid in any case.
        recipe: Options of its recipe.
        steps: Optimiser steps.
        margins: For each part of the network that must have learnt, by how much its balanced accuracy must exceed
            that of a randomly initialised one.
        batch_size: Images in a step.
        masks: Masks of the tiles, for methods that need them.
    """

    method: str
    architecture: Architecture
    recipe: Mapping[str, Any]
    margins: Mapping[str, float]
    steps: int = 160
    batch_size: int = 32
    masks: str | None = None


# Above what collapsed runs gain before they collapse: up to 0.05 (tests/test_learning.py collapses some on purpose).
ENCODER = {"encoder": 0.06}
BOTH = {"encoder": 0.06, "decoder": 0.06}
# DINO collapsed on purpose lost 0.02 to 0.05 with the encoder, and gained up to 0.05 with the pyramid, which it does
# not train.
VIT_ENCODER = {"encoder": 0.03}
VIT_BOTH = {"encoder": 0.03, "decoder": 0.05}

TRIALS: tuple[Trial, ...] = (
    Trial("slotcon", "cnn", SLOTS, ENCODER),
    Trial("densecl", "cnn", QUEUE, ENCODER),
    Trial("pixpro", "cnn", LARS | MOVING | {"blur_px": 0.0}, ENCODER, steps=240),
    Trial("detcon", "cnn", SEGMENTS, ENCODER, masks="felzenszwalb"),
    Trial("simclr", "cnn", LARS | {"jitter": 0.5}, ENCODER),
    Trial("moco-v2", "cnn", QUEUE | {"temperature": 0.1, "blur_px": 0.0}, ENCODER, steps=280),
    Trial("moco-v3", "cnn", LARS | MOVING, ENCODER),
    Trial("byol", "cnn", LARS | MOVING, ENCODER),
    Trial("simsiam", "cnn", SGD | {"predictor_hidden": 32}, ENCODER),
    Trial("barlow", "cnn", LARS, ENCODER),
    Trial("zerocl", "cnn", LARS | {"dim": 16, "blur_px": 0.0}, ENCODER, steps=280),  # fewer channels than images
    Trial("vicreg", "cnn", LARS, ENCODER),
    Trial("decon-sl", "cnn", SLOTS | DECODER, BOTH),
    Trial("decon-ml", "cnn", SLOTS | DECODER, BOTH, steps=110),
    Trial("decon-sl-densecl", "cnn", QUEUE | DECODER, BOTH),
    Trial(
        "decon-sl-pixpro",
        "cnn",
        LARS | MOVING | {"decoder_grid": 8, "instance_weight": 1.0},
        BOTH,
        steps=150,
    ),
    Trial("decon-sl-detcon", "cnn", SEGMENTS, BOTH, masks="felzenszwalb"),
    Trial("decon-sl-byol", "cnn", LARS | MOVING | DECODER, BOTH),
    Trial("dino", "vit", TOKENS | SMALLER | {"base_lr": 4e-3}, VIT_ENCODER, steps=400, batch_size=64),
    Trial("ibot", "vit", MASKED, VIT_ENCODER, steps=200),
    Trial("selfpatch", "vit", TOKENS | AGGREGATED, VIT_ENCODER, steps=200),
    Trial("pqcl", "vit, fixed positions", MASKED | MASKED_QUERIES, VIT_ENCODER, steps=200),
    Trial("adclr-dino", "vit", TOKENS | QUERIES, VIT_ENCODER, steps=220),
    Trial("adclr-ibot", "vit", MASKED | QUERIES, VIT_ENCODER, steps=200),
    Trial("dino+decon-sl", "vit", TOKENS | DECODED, VIT_BOTH, steps=220),
    Trial("dino+decon-sl-simclr", "vit", TOKENS | POOLED, VIT_BOTH, steps=220),
    Trial(
        "adclr+decon",
        "vit",
        TOKENS | QUERIES | DECODED | {"queries": 2, "alpha": 0.35},
        VIT_BOTH,
        steps=200,
    ),
)


@dataclass(frozen=True)
class Outcome:
    """What a run reached: balanced accuracies in [0, 1] by part of the network, and the seconds it took."""

    learned: Mapping[str, float]
    random: Mapping[str, float]
    seconds: float

    def gain(self, part: str) -> float:
        """Return how much better than random the features of a part are."""
        return self.learned[part] - self.random[part]

    def passes(self, trial: Trial) -> bool:
        """Whether every part that must have learnt has."""
        return all(self.gain(part) >= margin for part, margin in trial.margins.items())


@dataclass(frozen=True)
class Bench:
    """What all runs share: the unlabelled tiles [96, 96] of grey values, the probe's mosaics, and where runs go."""

    tiles: Sequence[NDArray[np.uint8]]
    data: ProbeData
    runs: Path

    @classmethod
    def make(cls, folder: Path) -> Bench:
        """Make the tiles and the mosaics; runs go into `folder`."""
        photographs, plan = read_textures(), MosaicPlan(side_px=TILE_PX, regions=(1, 1))
        tiles = [mosaic(photographs, plan, "unlabelled", index)[0] for index in range(TILES)]
        data = ProbeData(probe_mosaics("labelled", LABELLED), probe_mosaics("test", TEST), len(TEXTURES))
        return cls(tiles, data, folder)

    def run(self, trial: Trial, seed: int) -> Outcome:
        """Train a network from its start with `seed`, and score it before and after."""
        out = self.runs / f"{trial.method}-{seed}"
        before = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            dovetail.pretrain(
                data=self.tiles,
                masks=trial.masks,
                model=make_model(trial.architecture, seed),
                method=trial.method,
                out=out,
                recipe={name: value for name, value in trial.recipe.items() if name not in ("image_size", "base_lr")},
                image_size=trial.recipe["image_size"],
                lr=trial.recipe["base_lr"] * trial.batch_size / 256,
                batch_size=trial.batch_size,
                max_steps=trial.steps,
                seed=seed,
                accelerator="cpu",
                precision="32-true",
                workers=0,
                overwrite=True,
            )
        seconds = time.perf_counter() - before
        model = make_model(trial.architecture, seed)
        random = self.score(model)
        dovetail.load_into(model, out)
        return Outcome(self.score(model), random, seconds)

    def score(self, model: nn.Module) -> dict[str, float]:
        """Return the probe's score of each part of a model."""
        network = build_network(copy.deepcopy(model), image_size=PROBE_PX)
        return probe(network, self.data, probe_groups(network))


def make_model(architecture: Architecture, seed: int) -> nn.Module:
    """Return a small network with a feature pyramid, its weights drawn from `seed`."""
    torch.manual_seed(seed)
    if architecture == "cnn":
        encoder = timm.create_model("resnet10t", num_classes=0, stem_width=8, channels=(16, 32, 64, 128))
        return EncoderFPN(encoder, channels=FPN_CHANNELS)
    options: dict[str, Any] = {"num_classes": 0, "img_size": PROBE_PX, "dynamic_img_size": True}
    # Pooled patches instead of a class token: what the loss sees is then what the probe reads.
    options |= {"class_token": False, "global_pool": "avg", "fc_norm": False}
    encoder = timm.create_model("test_vit", patch_size=8, depth=2, **options)
    for module in encoder.modules():
        if isinstance(module, nn.Linear):  # timm's 0.02 is made for wider ViTs; one of 64 channels starts out linear
            nn.init.xavier_uniform_(module.weight)
    if architecture == "vit, fixed positions":
        encoder.pos_embed.data.copy_(sincos_grid(encoder))
    return ViTFPN(encoder, channels=FPN_CHANNELS)


def probe_mosaics(split: Split, count: int) -> InMemory:
    """Return mosaics of two textures, each seen at a scale, contrast and brightness of its own."""
    photographs = read_textures()
    plan = MosaicPlan(side_px=TILE_PX, regions=(2, 2))
    items = []
    for index in range(count):
        rng = np.random.default_rng((1, index, len(split)))
        pixels, mask = mosaic(photographs, plan, split, index)
        items.append(varied(torch.from_numpy(pixels), torch.from_numpy(mask), rng))
    return InMemory(items)


def varied(pixels: Tensor, mask: Tensor, rng: np.random.Generator) -> Labelled:
    """Return a mosaic [S, S] in grey values and its mask, cropped, resized, flipped and with other grey values."""
    side = int(rng.integers(round(0.7 * TILE_PX), TILE_PX + 1))
    top, left = rng.integers(0, TILE_PX - side + 1, 2)
    window = slice(top, top + side), slice(left, left + side)
    grey, labels = (part[window].float()[None, None] for part in (pixels, mask))
    grey = F.interpolate(grey, (PROBE_PX, PROBE_PX), mode="bilinear", antialias=True, align_corners=False)
    labels = F.interpolate(labels, (PROBE_PX, PROBE_PX), mode="nearest-exact")
    grey = (grey - 128) * rng.uniform(0.7, 1.15) + 128 + rng.uniform(-24, 24)
    if rng.random() < 0.5:
        grey, labels = grey.flip(3), labels.flip(3)
    image = grey[0].clamp(0, 255).round().to(torch.uint8).expand(3, -1, -1)
    return Labelled(image.contiguous(), labels[0, 0].long())


def table(results: Mapping[Trial, Sequence[Outcome]]) -> str:
    """Return the table of all trials in markdown: means over seeds, and the smallest gain of any seed."""
    header = ["method", "network", "part", "random", "learned", "smallest gain", "margin", "passed", "seconds"]
    lines = [header, ["---"] * len(header)]
    for trial, outcomes in results.items():
        passed = sum(outcome.passes(trial) for outcome in outcomes)
        for part, margin in trial.margins.items():
            random, learned = (
                statistics.mean(scores[part] for scores in kind)
                for kind in ([one.random for one in outcomes], [one.learned for one in outcomes])
            )
            smallest = min(outcome.gain(part) for outcome in outcomes)
            seconds = statistics.mean(outcome.seconds for outcome in outcomes)
            cells = [trial.method, trial.architecture, part, f"{100 * random:.1f}", f"{100 * learned:.1f}"]
            cells += [f"{100 * smallest:+.1f}", f"{100 * margin:.0f}", f"{passed} of {len(outcomes)}", f"{seconds:.0f}"]
            lines.append(cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def page(results: Mapping[Trial, Sequence[Outcome]], command: str) -> str:
    """Return the whole page."""
    return "\n".join(
        [
            "# Does every method learn?",
            "",
            (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip(),
            "",
            f"Balanced accuracy in percent (chance: {100 / len(TEXTURES):.0f}), means over seeds. A run passes when",
            "each part gains at least its margin. Seconds are of pre-training, on one thread of the machine below.",
            "",
            table(results),
            "",
            f"Command: `{command}`  ",
            f"Machine: {platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores  ",
            f"Versions: Python {platform.python_version()}, torch {torch.__version__}, timm {timm.__version__}  ",
            f"Date: {date.today().isoformat()}",
            "",
        ]
    )


def trial_of(method: str) -> Trial:
    """Return the trial of a method."""
    by_name = {trial.method: trial for trial in TRIALS}
    if method not in by_name:
        raise unknown_name("trial", method, by_name)
    return by_name[method]


def main(arguments: Sequence[str]) -> int:
    """Run the trials and return 0 if all passed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.toy", description="Does every method learn?")
    parser.add_argument("--methods", nargs="+", default=[trial.method for trial in TRIALS], help="trials to run")
    parser.add_argument("--seeds", type=int, default=3, help="number of runs per trial")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "toy.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    results: dict[Trial, list[Outcome]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench.make(Path(folder))
        for trial in map(trial_of, options.methods):
            results[trial] = [bench.run(trial, seed) for seed in range(options.seeds)]
            print(table({trial: results[trial]}).splitlines()[2:], flush=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(page(results, " ".join(["python -m benchmarks.toy", *arguments])), encoding="utf-8")
    print(table(results))
    return 0 if all(one.passes(trial) for trial, outcomes in results.items() for one in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
