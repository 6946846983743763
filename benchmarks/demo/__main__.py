"""`python -m benchmarks.demo --out demo-out`: the effect of joint pre-training, seen within minutes on a processor.

A small Unet is pre-trained on pieces of real photographs without labels, by DenseCL on its encoder and by DeCon over
DenseCL on encoder and decoder, and fine-tuned with few labels on mosaics of the photographs' textures, whose masks are
exact. What is printed is what was measured; the settings were chosen on validation mosaics, which share no pixel with
the test mosaics.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.demo.mosaics import Split, write_mosaics
from benchmarks.demo.settings import DemoSettings
from benchmarks.demo.trial import MODEL, Arm, Outcome, measure, read_split
from dovetail.transfer.labelled import InMemory

Group = tuple[int, list[Outcome]]  # labelled mosaics, and what every arm makes of them


def main() -> None:
    """Run the demo as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder for everything it makes")
    demonstrate(parser.parse_args().out, DemoSettings())


def demonstrate(out: Path, settings: DemoSettings) -> None:
    """Pre-train, fine-tune, measure; print the table and the files it made."""
    start = time.monotonic()
    out.mkdir(parents=True, exist_ok=True)
    labelled = max(settings.labels) * len(settings.seeds)
    photographs = write_mosaics(out / "photographs", settings.pieces, {"unlabelled": settings.unlabelled})
    counts: dict[Split, int] = {"labelled": labelled, "test": settings.test}
    folders = write_mosaics(out / "mosaics", settings.mosaics, counts)
    arms = pretrain_arms(photographs["unlabelled"], out, settings)
    test = read_split(folders["test"])
    groups = finetune_arms(arms, read_split(folders["labelled"]), test, settings)
    print_table(groups, settings)
    made = save_all(groups, arms, test, out, settings)
    seconds = time.monotonic() - start
    made.append((save_results(groups, out / "results.json", settings, seconds), "every number, settings, versions"))
    made.append((out / "decon", "the pre-trained model, for dovetail.load_into(model, this folder)"))
    made.append((out / "mosaics", "the mosaics with their masks: labelled, test"))
    made.append((out / "photographs", "what pre-training saw"))
    print(f"Made in {seconds:.0f} s, in {out}:")
    for path, what in made:
        print(f"  {path.relative_to(out)!s:<18}{what}")


def pretrain_arms(images: Path, out: Path, settings: DemoSettings) -> list[Arm]:
    """Pre-train with DenseCL and with DeCon over it, equally many steps, and return the four arms."""
    print(f"\n== Pre-training {MODEL} without labels: DenseCL, encoder only ==", flush=True)
    base = settings.base.run(images, out / "densecl")
    print(f"\n== Pre-training {MODEL} without labels: DeCon over DenseCL, encoder and decoder ==", flush=True)
    decon = settings.decon.run(images, out / "decon")
    return [
        Arm("from scratch"),
        Arm("DenseCL, encoder", base, "encoder"),
        Arm("DeCon, encoder only", decon, "encoder"),
        Arm("DeCon, encoder + decoder", decon, "all"),
    ]


def finetune_arms(arms: Sequence[Arm], labelled: InMemory, test: InMemory, settings: DemoSettings) -> list[Group]:
    """Return the outcomes of all arms for each number of labelled mosaics."""
    groups: list[Group] = []
    for labels in settings.labels:
        print(f"\n== Fine-tuning with {labels} labelled mosaics, {len(settings.seeds)} seeds ==", flush=True)
        outcomes = []
        for arm in arms:
            outcome = measure(arm, labelled, test, labels=labels, options=settings.finetuning, seeds=settings.seeds)
            print(f"{arm.name:<26}test mIoU {outcome.mean:5.1f} %", flush=True)
            outcomes.append(outcome)
        groups.append((labels, outcomes))
    return groups


def print_table(groups: Sequence[Group], settings: DemoSettings) -> None:
    """Print mean and deviation of test mIoU, arms down, numbers of labels across."""
    seeds = len(settings.seeds)
    print(f"\nTest mIoU in %, mean ± standard deviation of n = {seeds} fine-tuning seeds over one pre-training each\n")
    print(f"{'labelled mosaics':<26}" + "".join(f"{labels:>14}" for labels, _ in groups))
    for row in zip(*(outcomes for _, outcomes in groups), strict=True):
        cells = "".join(f"{outcome.mean:>7.1f} ± {outcome.deviation:<4.1f}" for outcome in row)
        print(f"{row[0].arm.name:<26}{cells}")
    print()


def save_all(
    groups: Sequence[Group], arms: Sequence[Arm], test: InMemory, out: Path, settings: DemoSettings
) -> list[tuple[Path, str]]:
    """Draw the pictures and return their paths, each with what it shows."""
    from benchmarks.demo.pictures import features_picture, predictions_picture, scores_picture

    options = settings.finetuning
    stages = [("before", arms[0].model(seed=0)), ("after DeCon", arms[-1].model(seed=0))]
    return [
        (scores_picture(groups, out / "scores.png"), "test mIoU of the four arms, with every seed"),
        (
            predictions_picture(groups[-1][1], test, out / "predictions.png", options=options),
            "test mosaics, the truth, and what each arm predicts",
        ),
        (
            features_picture(stages, test, out / "features.png", options=options),
            "the decoder's features before and after pre-training, without a label",
        ),
    ]


def save_results(groups: Sequence[Group], path: Path, settings: DemoSettings, seconds: float) -> Path:
    """Write all scores of all seeds, the settings and the versions."""
    results = {
        "model": MODEL,
        "settings": asdict(settings),
        "seconds": round(seconds, 1),
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
        "test": [
            {
                "arm": outcome.arm.name,
                "labels": labels,
                "miou": [score.miou for score in outcome.scores],
                "accuracy": [score.accuracy for score in outcome.scores],
                "mean_accuracy": [score.mean_accuracy for score in outcome.scores],
                "iou": [[None if math.isnan(one) else one for one in score.iou] for score in outcome.scores],
            }
            for labels, outcomes in groups
            for outcome in outcomes
        ],
    }
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    return path


if __name__ == "__main__":
    main()
