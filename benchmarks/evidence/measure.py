"""Measure one row with one seed: pre-train, look at frozen maps, fine-tune. Every score is written down at once.

Everything goes through the public functions. A score that is known is not measured again, and an interrupted
pre-training resumes from its checkpoint.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import dovetail
from benchmarks.evidence.records import Cell, Records
from benchmarks.evidence.rows import Measure, Row, Start
from benchmarks.evidence.scales import Scale
from benchmarks.scenes.textures import PIECES
from benchmarks.scenes.write import SceneSet
from dovetail.downstream.table.results import Results
from dovetail.errors import DovetailError
from dovetail.networks.build import build_network
from dovetail.networks.initialise import starting_statistics
from dovetail.views.plan import IMAGENET_MEAN, IMAGENET_STD
from dovetail.weights.exported import MODEL_FILE, save_exported
from dovetail.weights.start import begin_from

FACTS = "facts.json"


@dataclass(frozen=True)
class Bench:
    """What all rows share: sizes, images, known scores, and the folder for weights."""

    scale: Scale
    images: SceneSet
    records: Records
    runs: Path

    def folder(self, row: Row, seed: int) -> Path:
        """Return where a row's weights lie; rows with the same pre-training share it."""
        name = row.pretraining.method if row.pretraining else row.init or "random"
        return self.runs / f"{name}-{seed}-{self.records.pretraining_mark(row)}"

    def cells(self, row: Row, measure: Measure, seed: int) -> list[Cell]:
        """Return everything that is to be measured of a row with a seed."""
        one = self.scale
        if measure == "frozen":
            ats = [f"{tap} {protocol}" for tap in one.taps for protocol in one.protocols]
            return [Cell(row.name, measure, at, labels, seed) for at in ats for labels in one.labels]
        return [Cell(row.name, measure, start, part, seed) for start in row.starts for part in one.steps(measure)]

    def missing(self, row: Row, measure: Measure, seed: int) -> list[Cell]:
        """Return what is not known yet."""
        found = self.records.found(row, measure)
        return [cell for cell in self.cells(row, measure, seed) if cell not in found]


def run_row(bench: Bench, row: Row, measure: Measure, seed: int, *, keep: bool = False) -> None:
    """Measure what is missing of a row with a seed; `keep` leaves the weights on disk."""
    missing = bench.missing(row, measure, seed)
    if not missing:
        return
    if measure == "frozen":
        frozen(bench, row, seed, missing)
    elif measure == "image":
        for cell in missing:
            classified(bench, row, cell)
    else:
        for cell in missing:
            finetuned(bench, row, cell, rate_of(bench, row, measure, starts_of(row, cell)))
    if not keep:
        shutil.rmtree(bench.folder(row, seed), ignore_errors=True)


def starts_of(row: Row, cell: Cell) -> Start:
    """Return the start that a cell of fine-tuning is about."""
    return next(start for start in row.starts if start == cell.at)


def weights(bench: Bench, row: Row, seed: int) -> Path:
    """Return a run folder with a row's weights, made where it is missing."""
    folder = bench.folder(row, seed)
    if (folder / "exported" / MODEL_FILE).is_file():
        return folder
    if row.pretraining is None:
        export_untrained(bench, row, seed, folder)
        return folder
    begun = (folder / "config.yaml").is_file() and (folder / "checkpoints" / "last.ckpt").exists()
    if not begun:
        shutil.rmtree(folder, ignore_errors=True)
    began = time.monotonic()
    dovetail.pretrain(**pretraining(bench, row, seed), out=folder, report_every_minutes=0, resume=begun)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # the exported weights are all that is needed
    facts = {} if begun else {"pretrain_seconds": round(time.monotonic() - began)}
    (folder / FACTS).write_text(json.dumps(facts) + "\n", encoding="utf-8")
    return folder


def pretraining(bench: Bench, row: Row, seed: int) -> dict[str, Any]:
    """Return the arguments of `dovetail.pretrain` but for the folder."""
    one, how = bench.scale, row.pretraining
    assert how is not None
    return {
        "data": bench.images.unlabelled,
        "model": one.networks[row.network],
        "method": how.method,
        "recipe": dict(how.recipe),
        "epochs": round(one.epochs * how.longer),
        "batch_size": one.batch_size,
        "image_size": one.view_px,
        "preset": "short",
        "init": row.init,
        "seed": seed,
        **how.options,
    }


def export_untrained(bench: Bench, row: Row, seed: int, folder: Path) -> None:
    """Write a model with its starting weights, the random ones drawn from `seed`, as a run would export it."""
    torch.manual_seed(seed)
    network = build_network(bench.scale.networks[row.network], image_size=bench.scale.view_px)
    begin_from(network, row.init)
    mean, std = starting_statistics(network, row.init) or (IMAGENET_MEAN, IMAGENET_STD)
    save_exported(network, folder / "exported", method="none", extra={}, mean=mean, std=std)


def frozen(bench: Bench, row: Row, seed: int, missing: list[Cell]) -> None:
    """Measure the frozen maps of a row and write the missing scores down."""
    one, run = bench.scale, weights(bench, row, seed)
    out = run / "frozen"
    results = done(
        dovetail.evaluate_dense(
            run=run,
            data=bench.images.measure,
            at=list(one.taps),
            labels=list(one.labels),
            protocols=list(one.protocols),
            seed=seed,
            out=out,
            **{"image_size": one.plan.side_px, **one.probing},
        )
    )
    shutil.rmtree(out, ignore_errors=True)
    for line in results.rows:
        setting = line.setting
        at = f"{setting['at']} {setting['protocol']}"
        cell = next((one for one in missing if one.at == at and one.labels == setting["labels"]), None)
        if cell is not None:
            bench.records.add(row, cell, plain(line.scores), facts_of(run, results))


def classified(bench: Bench, row: Row, cell: Cell) -> None:
    """Classify whole images by their nearest neighbours and write the score down."""
    run, one = weights(bench, row, cell.seed), bench.scale
    out, pieces = run / "image", bench.images.folder / PIECES
    results = done(dovetail.evaluate_knn(run=run, data=pieces, k=[one.neighbours], image_size=one.view_px, out=out))
    shutil.rmtree(out, ignore_errors=True)
    bench.records.add(row, cell, {"accuracy": plain(results.rows[0].scores)["top1"]}, facts_of(run, results))


def rate_of(bench: Bench, row: Row, measure: Measure, start: Start) -> float:
    """Return the candidate rate that does best on the images to choose with, with the first seed."""
    one = bench.scale
    rates = one.detection_rates if measure == "detect" else one.rates
    if len(rates) == 1:
        return rates[0]
    cells = {rate: Cell(row.name, measure, start, one.rate_fraction, one.seeds[0], "rate", rate) for rate in rates}
    for rate, cell in cells.items():
        if cell not in bench.records.found(row, measure):
            finetuned(bench, row, cell, rate)
    found = bench.records.found(row, measure)
    return max(rates, key=lambda rate: found[cells[rate]]["scores"][main_score(measure)])


def finetuned(bench: Bench, row: Row, cell: Cell, rate: float) -> None:
    """Fine-tune for one cell and write its score down."""
    run = weights(bench, row, cell.seed)
    labelled = bench.images.measure if cell.kind == "score" else bench.images.choose
    out = run / "finetune"
    shutil.rmtree(out, ignore_errors=True)
    common = {"run": run, "data": labelled, "out": out, "start": [cell.at], "fraction": [cell.labels]}
    common |= {"seed": cell.seed, "lr": rate}
    began = time.monotonic()
    if cell.measure == "detect":
        results = done(dovetail.finetune_detect(**common, **bench.scale.detection))
    else:
        options = {**bench.scale.finetuning, **row.finetuning, "steps": bench.scale.steps(cell.measure)[cell.labels]}
        options |= {"encoder_lr_scale": 0.0} if cell.measure == "decoder" else {}
        results = done(dovetail.finetune_segment(**common, **options))
    seconds = time.monotonic() - began
    shutil.rmtree(out, ignore_errors=True)
    facts = {"lr": rate, "seconds": round(seconds, 1), "labelled": results.rows[0].setting["images"]}
    bench.records.add(row, cell, plain(results.rows[0].scores), facts | facts_of(run, results))


def main_score(measure: Measure) -> str:
    """Return the name of the score that rates are chosen by."""
    return "box AP" if measure == "detect" else "mIoU"


def done(results: Results | None) -> Results:
    """Return results that must be there."""
    if results is None:
        raise DovetailError("The measurement returned no results; this is a fault of the study.")
    return results


def plain(scores: Mapping[str, Any]) -> dict[str, float]:
    """Return scores as numbers in [0, 1]."""
    return {name: round(score.mean, 6) for name, score in scores.items()}


def facts_of(run: Path, results: Results) -> dict[str, Any]:
    """Return where a score comes from: the run's own facts, machine and device."""
    path = run / FACTS
    known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores"
    return {**known, "machine": machine, "device": results.device}
