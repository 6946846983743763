"""One arm with one seed: pre-train, fine-tune from each start with each share of the labels, write down each score.

Everything goes through the public functions. What is written down already is not done again, and a pre-training that
was interrupted goes on where it stopped. Weights are deleted when the last score that needs them is there.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dovetail
from benchmarks.evidence.arms import Arm, Budget
from benchmarks.evidence.records import Cell, Kind, Records
from benchmarks.scenes.baselines import background_alone, baseline
from benchmarks.scenes.boxes import mean_boxes
from benchmarks.scenes.textures import PIECES
from benchmarks.scenes.write import SceneSet
from dovetail.errors import DovetailError
from dovetail.transfer.ledger import lines_of
from dovetail.transfer.readers import open_segmentation
from dovetail.transfer.results import Results
from dovetail.transfer.start import Start
from dovetail.transfer.subsets import balanced_order, fraction_of

PROBES = ("kNN", "linear")
FACTS = "facts.json"
LEVEL = re.compile(r"p\d")  # a decoder's map
NEIGHBOURS = 20


@dataclass(frozen=True)
class Bench:
    """What all arms share.

    Attributes:
        sets: To pre-train, to fine-tune and to measure on, by name.
        budget: Sizes.
        records: Where scores go.
        runs: Folder for weights.
    """

    sets: Mapping[str, SceneSet]
    budget: Budget
    records: Records
    runs: Path

    def run_folder(self, arm: Arm, seed: int) -> Path:
        """Return where an arm's pre-training lies; other settings have another folder, arms that share one the same."""
        if arm.method is None:
            return self.runs / f"{arm.name.replace(' ', '-').replace(',', '')}-{seed}-{self.records.mark(arm)[:8]}"
        return self.runs / f"{arm.method}-{seed}-{self.records.pretraining_mark(arm)}"

    def measured_set(self, arm: Arm) -> SceneSet:
        """Return the set that an arm is measured on."""
        return self.sets[self.budget.set_of(arm.measured_on)]

    def missing(self, arm: Arm, seed: int) -> list[Cell]:
        """Return the scores of an arm and seed that are not there yet."""
        found = self.records.found(arm)
        fractions = (1.0,) if arm.measure == "frozen" else self.budget.fractions
        cells = [Cell("score", arm.name, start, fraction, seed) for start in arm.starts for fraction in fractions]
        return [cell for cell in cells if cell not in found]


def run_arm(bench: Bench, arm: Arm, seed: int, *, keep: bool = False) -> None:
    """Do what is missing of an arm and seed, and choose its rates first where they are not chosen yet.

    Args:
        bench: What all arms share.
        arm: The arm.
        seed: Of pre-training, subset, new weights and augmentation.
        keep: Whether the weights stay on disk.
    """
    if not bench.missing(arm, seed):
        return
    if arm.cue is not None:
        run_floor(bench, arm, seed)
        return
    rates = {start: chosen_rate(bench, arm, start) for start in arm.starts if arm.measure != "frozen"}
    run = pretrained(bench, arm, seed)
    for cell in bench.missing(arm, seed):
        start: Start = next(one for one in arm.starts if one == cell.start)
        if arm.measure == "frozen":
            probed(bench, arm, cell, run)
        else:
            measured(bench, arm, cell, run, start, rates[start])
    if not keep:
        shutil.rmtree(bench.run_folder(arm, seed), ignore_errors=True)


def run_floor(bench: Bench, arm: Arm, seed: int) -> None:
    """Do what is missing of a floor without a network, with the same labelled scenes as the other arms."""
    assert arm.cue is not None
    if arm.measure == "detection":
        for cell in bench.missing(arm, seed):
            scores, images = mean_boxes(bench.measured_set(arm).measure, cell.fraction, seed)
            bench.records.add(arm, cell, {"scores": scores, "images": images, "machine": machine_line()})
        return
    if arm.cue == "commoner class":
        for cell in bench.missing(arm, seed):
            share = share_of_commoner(whole_images(bench.measured_set(arm)))
            facts = {"scores": dict.fromkeys(PROBES, share), "machine": machine_line()}
            bench.records.add(arm, cell, facts)
        return
    data = open_segmentation(bench.measured_set(arm).measure)
    test = [data.val[index] for index in range(len(data.val))]
    order = balanced_order([data.train.classes_in(index) for index in range(len(data.train))], seed)
    for cell in bench.missing(arm, seed):
        chosen = fraction_of(order, cell.fraction)
        if arm.cue == "background":
            scores = background_alone(test, classes=data.classes)
        else:
            scores = baseline(arm.cue, [data.train[index] for index in chosen], test, classes=data.classes)
        plain = {"mIoU": scores.miou, "aAcc": scores.accuracy, "mAcc": scores.mean_accuracy}
        bench.records.add(arm, cell, {"scores": plain, "images": len(chosen), "machine": machine_line()})


def pretrained(bench: Bench, arm: Arm, seed: int) -> Path | None:
    """Return the folder of an arm's finished pre-training; None for an arm without."""
    if arm.method is None:
        return None
    folder, budget = bench.run_folder(arm, seed), bench.budget
    if not (folder / "exported" / "model.safetensors").is_file():
        begun = (folder / "config.yaml").is_file() and (folder / "checkpoints" / "last.ckpt").exists()
        if not begun:
            shutil.rmtree(folder, ignore_errors=True)
        began = time.monotonic()
        dovetail.pretrain(
            **pretraining(budget, arm, seed),
            data=unlabelled(bench, arm),
            out=folder,
            report_every_minutes=0,
            resume=begun,
        )
        remember(bench, arm, folder, None if begun else time.monotonic() - began)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # the exported weights are all that is needed
    return folder


def pretraining(budget: Budget, arm: Arm, seed: int) -> dict[str, Any]:
    """Return what decides the pre-training of an arm that has one, but for the images."""
    assert arm.method is not None
    return {
        "model": budget.pretrained_model(arm),
        "method": arm.method,
        "recipe": budget.recipe(arm),
        "epochs": round(arm.longer * budget.epochs),
        "batch_size": budget.batch_size,
        "image_size": budget.view_px,
        "seed": seed,
    }


def chosen_rate(bench: Bench, arm: Arm, start: Start) -> float:
    """Return the learning rate of fine-tuning for a start: the best of the candidates on the scenes to choose with.

    It is chosen once, with the first seed and a share of the labels, and holds for all seeds and shares.
    """
    budget, rates = bench.budget, bench.budget.rates_of(arm)
    if len(rates) == 1:
        return rates[0]
    seed = budget.seeds[0]
    cells = {rate: Cell("rate", arm.name, start, budget.rate_fraction, seed, rate) for rate in rates}
    for rate, cell in cells.items():
        if cell not in bench.records.found(arm):
            measured(bench, arm, cell, pretrained(bench, arm, seed), start, rate)
    found = bench.records.found(arm)
    name = "box AP" if arm.measure == "detection" else "mIoU"
    return max(rates, key=lambda rate: found[cells[rate]]["scores"][name])


def measured(bench: Bench, arm: Arm, cell: Cell, run: Path | None, start: Start, rate: float) -> None:
    """Fine-tune for one cell and write its score down."""
    budget = bench.budget
    labelled = bench.measured_set(arm)
    data = labelled.measure if cell.kind == "score" else labelled.choose
    out = bench.run_folder(arm, cell.seed) / "finetune"
    shutil.rmtree(out, ignore_errors=True)
    began = time.monotonic()
    results = finetuning_of(arm)(
        run=run,
        model=budget.finetuned_model(arm) if run is None or arm.network == "unet" else None,
        data=data,
        out=out,
        start=[start],
        fraction=[cell.fraction],
        seed=cell.seed,
        lr=rate,
        **finetuning(budget, arm),
    )
    seconds = time.monotonic() - began
    shutil.rmtree(out, ignore_errors=True)
    if results is None:
        raise DovetailError("Fine-tuning gave no results; this is a fault of the study.")
    facts = facts_of(results.rows[0].scores, results.details, cell.kind)
    facts |= {"images": results.rows[0].setting["images"], "lr": rate, "seconds": round(seconds, 1)}
    facts |= {**known_of(run), "machine": machine_line(), "device": results.device}
    bench.records.add(arm, cell, facts)


def finetuning_of(arm: Arm) -> Callable[..., Results | None]:
    """Return the command that fine-tunes and measures."""
    return dovetail.finetune_detect if arm.measure == "detection" else dovetail.finetune_segment


def finetuning(budget: Budget, arm: Arm) -> dict[str, Any]:
    """Return what decides an arm's fine-tuning but for its start, images, rate and seed."""
    if arm.measure == "detection":
        return {"task": "masks", **budget.detection, **(arm.finetuning or {})}
    return {
        "steps": budget.steps,
        "batch_size": budget.finetune_batch,
        "encoder_lr_scale": arm.encoder_lr_scale,
        "crop_size": budget.side_px,
        **(arm.finetuning or {}),
    }


def probed(bench: Bench, arm: Arm, cell: Cell, run: Path | None) -> None:
    """Measure the frozen encoder for one cell and write its scores down."""
    budget, data = bench.budget, whole_images(bench.measured_set(arm))
    out = bench.run_folder(arm, cell.seed) / "frozen"
    shutil.rmtree(out, ignore_errors=True)
    began = time.monotonic()
    common: dict[str, Any] = {"run": run, "data": data, "image_size": budget.view_px, "seed": cell.seed}
    common |= {} if run is not None else {"model": budget.pretrained_model(arm)}
    knn = dovetail.evaluate_knn(k=[NEIGHBOURS], out=out / "knn", **common)
    linear = dovetail.evaluate_linear(out=out / "linear", **common)
    seconds = time.monotonic() - began
    shutil.rmtree(out, ignore_errors=True)
    if knn is None or linear is None:
        raise DovetailError("Measuring gave no results; this is a fault of the study.")
    scores = {
        name: round(found.rows[0].scores["top1"].mean, 6) for name, found in zip(PROBES, (knn, linear), strict=True)
    }
    facts = {"scores": scores, "seconds": round(seconds, 1), **known_of(run)}
    bench.records.add(arm, cell, facts | {"machine": machine_line(), "device": linear.device})


def unlabelled(bench: Bench, arm: Arm) -> Path:
    """Return the folder of images that an arm pre-trains on; of a set without unlabelled ones its training images."""
    found = bench.sets[bench.budget.set_of(arm.trained_on)]
    return found.unlabelled if found.unlabelled.is_dir() else found.measure / "train"


def whole_images(images: SceneSet) -> Path:
    """Return the part of a set whose images have a class each."""
    pieces = images.folder / PIECES
    return pieces if pieces.is_dir() else images.measure


def share_of_commoner(data: Path) -> float:
    """Return the share of test images that are of the class with most training images."""
    counts = {part: Counter(path.parent.name for path in (data / part).glob("*/*")) for part in ("train", "val")}
    commoner = counts["train"].most_common(1)[0][0]
    return counts["val"][commoner] / counts["val"].total()


def facts_of(scores: Any, details: Any, kind: Kind) -> dict[str, Any]:
    """Return the scores as plain numbers in [0, 1], with the IoU of each class."""
    plain = {name: round(score.mean, 6) for name, score in scores.items()}
    return {"scores": plain} | ({"iou": details.get("iou_per_class")} if kind == "score" else {})


def remember(bench: Bench, arm: Arm, run: Path, seconds: float | None) -> None:
    """Write down how long a pre-training took, unless it was interrupted, and what it said of itself."""
    taken = {} if seconds is None else {"pretrain_seconds": round(seconds)}
    facts = {**taken, "signals": signals_of(bench, arm, run)}
    (run / FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")


def signals_of(bench: Bench, arm: Arm, run: Path) -> dict[str, float]:
    """Return what the end of a run says without dense labels: rank and spread of the encoder's deepest map or token,
    and kNN of its frozen encoder on a few whole images with a class each, where the set has such.
    """
    lines = [line for line in lines_of(run / "metrics.jsonl") if "effective_rank" in line]
    found: dict[str, float] = {}
    for name in ("effective_rank", "spread"):
        values = [value for tap, value in lines[-1][name].items() if not LEVEL.fullmatch(tap)] if lines else []
        found |= {name: round(float(values[-1]), 4)} if values else {}
    pieces = bench.sets[bench.budget.set_of(arm.trained_on)].folder / PIECES
    if pieces.is_dir():
        knn = dovetail.evaluate_knn(
            run=run, data=pieces, k=[NEIGHBOURS], out=run / "signal", image_size=bench.budget.view_px
        )
        assert knn is not None
        found["kNN"] = round(knn.rows[0].scores["top1"].mean, 6)
    return found


def known_of(run: Path | None) -> dict[str, Any]:
    """Return what was written down of a pre-training."""
    if run is None or not (run / FACTS).is_file():
        return {}
    facts: dict[str, Any] = json.loads((run / FACTS).read_text(encoding="utf-8"))
    return facts


def machine_line() -> str:
    """Return the machine in words."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"
