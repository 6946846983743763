"""`python -m benchmarks.demo.rates --out rates-out`: which rate fine-tuning wants, from every starting point.

A comparison of starting points at one rate favours the one that the rate suits, so the demo's was chosen here: the
best for training from scratch. Scored on 64 validation mosaics; no test mosaic is read. What was measured already is
kept in `out`/rates.jsonl and not measured again. `benchmarks/results/demo_rates.md` is the table.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.demo.mosaics import write_mosaics
from benchmarks.demo.settings import FINETUNING, DemoSettings
from benchmarks.demo.trial import Arm, measure, read_split
from dovetail.transfer.labelled import InMemory

VALIDATION = 64  # mosaics
Row = dict[str, Any]


def main() -> None:
    """Fine-tune every arm at every rate and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo.rates", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("rates-out"), help="folder for everything it makes")
    parser.add_argument("--labels", type=int, nargs="+", default=[4, 16], help="labelled mosaics")
    parser.add_argument("--lr", type=float, nargs="+", default=[1e-3, 2e-3, 4e-3, 8e-3], help="of all but the head")
    parser.add_argument("--head", type=float, nargs="+", default=[1.0], help="how many times higher the head's is")
    parser.add_argument("--steps", type=int, nargs="+", default=[FINETUNING.steps], help="of fine-tuning")
    parser.add_argument("--augment", action="store_true", help="resize, brighten and darken training crops, too")
    parser.add_argument("--arms", nargs="+", help="these starting points alone, by the start of their names")
    parser.add_argument("--seeds", type=int, default=4, help="of fine-tuning, each with labelled mosaics of its own")
    arguments = parser.parse_args()
    folders = split_folders(arguments.out, max(arguments.labels) * arguments.seeds)
    wanted = tuple(arguments.arms or [""])
    arms = [arm for arm in pretrained_arms(arguments.out, folders["unlabelled"]) if arm.name.startswith(wanted)]
    labelled, validation = read_split(folders["labelled"]), read_split(folders["validation"])
    rows: list[Row] = []
    for row in grid(arguments):
        for arm in arms:
            key = {"arm": arm.name, **row}
            rows.append(known(arguments.out, key) or scored(arguments.out, key, arm, labelled, validation))
            print(line(rows[-1]), flush=True)
    print("\n" + table(rows, [arm.name for arm in arms]))


def split_folders(out: Path, labelled: int) -> dict[str, Path]:
    """Write what pre-training and fine-tuning see, and return its folders."""
    settings = DemoSettings()
    pieces = write_mosaics(out / "photographs", settings.pieces, {"unlabelled": settings.unlabelled})
    mosaics = write_mosaics(out / "mosaics", settings.mosaics, {"labelled": labelled, "validation": VALIDATION})
    return {"unlabelled": pieces["unlabelled"], **{str(split): folder for split, folder in mosaics.items()}}


def pretrained_arms(out: Path, images: Path) -> list[Arm]:
    """Return the demo's four starting points, pre-trained if they are not yet."""
    settings = DemoSettings()
    base, decon = settings.base.run(images, out / "densecl"), settings.decon.run(images, out / "decon")
    return [
        Arm("from scratch"),
        Arm("DenseCL, encoder", base, "encoder"),
        Arm("DeCon, encoder only", decon, "encoder"),
        Arm("DeCon, encoder + decoder", decon, "all"),
    ]


def grid(arguments: argparse.Namespace) -> Iterator[Row]:
    """Yield the settings of every row of the table."""
    for labels in arguments.labels:
        for steps in arguments.steps:
            for head in arguments.head:
                for lr in arguments.lr:
                    setting = {"labels": labels, "steps": steps, "lr": lr, "head": head, "seeds": arguments.seeds}
                    yield {**setting, "augment": arguments.augment}


def known(out: Path, key: Row) -> Row | None:
    """Return the row that was measured with these settings before, if any."""
    path = out / "rates.jsonl"
    rows = [json.loads(text) for text in path.read_text().splitlines()] if path.is_file() else []
    return next((row for row in rows if {name: row[name] for name in key} == key), None)


def scored(out: Path, key: Row, arm: Arm, labelled: InMemory, validation: InMemory) -> Row:
    """Fine-tune an arm with each seed, note its mIoU in per cent and return the row."""
    options = replace(FINETUNING, lr=key["lr"], lr_scale={"head": key["head"]}, steps=key["steps"])
    if key["augment"]:
        options = replace(options, augmentation=replace(options.augmentation, scale=(0.7, 1.4), jitter=0.3))
    seeds = range(key["seeds"])
    outcome = measure(arm, labelled, validation, labels=key["labels"], options=options, seeds=seeds)
    row = {**key, "miou": outcome.mious}
    with (out / "rates.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    return row


def line(row: Row) -> str:
    """Return a row as a line of text."""
    setting = f"{row['labels']:>3} labels, {row['steps']} steps, rate {row['lr']:g}, head x{row['head']:g}"
    setting += ", resized and brightened" if row["augment"] else ""
    return f"{setting}: {row['arm']:<26}{statistics.fmean(row['miou']):5.1f}"


def table(rows: Sequence[Row], arms: Sequence[str]) -> str:
    """Return the table in markdown: settings down, arms across, mean mIoU and in brackets the seeds."""
    lines = ["labels | steps | rate | head's rate | augmented | " + " | ".join(arms)]
    lines.append(" | ".join(["---"] * (5 + len(arms))))
    for first in range(0, len(rows), len(arms)):
        row = rows[first]
        cells = [str(row["labels"]), str(row["steps"]), f"{row['lr']:g}", f"{row['lr'] * row['head']:g}"]
        cells.append("yes" if row["augment"] else "no")
        for one in rows[first : first + len(arms)]:
            seeds = ", ".join(f"{score:.1f}" for score in one["miou"])
            cells.append(f"{statistics.fmean(one['miou']):.1f} ({seeds})")
        lines.append(" | ".join(cells))
    return "\n".join(f"| {text} |" for text in lines)


if __name__ == "__main__":
    main()
