"""`python -m benchmarks.demo.study --out study-out`: when does it help to take the pre-trained decoder along?

Every pre-training below differs from the demo's in what its name says; each is fine-tuned from its encoder alone and
from encoder and decoder, in several ways, and measured on validation mosaics. Finished pre-trainings and measurements
are kept in `out` and not repeated. `benchmarks/results/demo.md` tells what was found.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file

from benchmarks.demo.mosaics import MosaicPlan, write_mosaics
from benchmarks.demo.settings import DECON, FINETUNING, SLOTCON
from benchmarks.demo.trial import Arm, Pretraining, measure, read_split
from dovetail.transfer.labelled import InMemory
from dovetail.transfer.segment import SegmentOptions

EPOCHS = 8  # 128 steps, fewer than the demo's


def changed(base: Pretraining, **recipe: Any) -> Pretraining:
    """Return a pre-training of the study's length with other options of the recipe."""
    return replace(base, epochs=EPOCHS, recipe={**base.recipe, **recipe})


PRETRAININGS: Mapping[str, Pretraining] = {
    "slotcon": changed(SLOTCON),
    "p2": changed(DECON),
    "p0": changed(DECON, levels="p0"),
    "p0-paper": changed(DECON, levels="p0", momentum=0.99, base_lr=1.0),
    "p2-paper": changed(DECON, momentum=0.99, base_lr=1.0),
    "p2-momentum": changed(DECON, momentum=0.99),
    "p2-alpha0": changed(DECON, alpha=0.0),
}

FINETUNINGS: Mapping[str, SegmentOptions] = {
    "plain": FINETUNING,
    "reestimate": replace(FINETUNING, batch_norm="reestimate"),
    "frozen": replace(FINETUNING, batch_norm="frozen"),
    "decoder x0.3": replace(FINETUNING, lr_scale={"decoder": 0.3}),
    "encoder x0.3": replace(FINETUNING, lr_scale={"encoder": 0.3}),
    "180 steps": replace(FINETUNING, steps=180),
}


@dataclass(frozen=True)
class Question:
    """One row: where fine-tuning starts, and how it goes."""

    run: str  # of PRETRAININGS, or "scratch"
    part: Literal["all", "encoder", "decoder"] = "all"
    finetuning: str = "plain"
    branch: Literal["teacher", "student"] = "teacher"
    labels: int = 8


# In order of interest, as each costs half a minute to a minute of a core, and each new pre-training some minutes.
QUESTIONS = (
    Question("scratch"),
    *(Question(run, part) for run in ("p2", "p0") for part in ("encoder", "all")),
    Question("slotcon", "encoder"),
    *(Question("p2", part, "plain", "student") for part in ("encoder", "all")),
    *(Question(run, "all", how) for run in ("p2", "p0") for how in ("reestimate", "decoder x0.3", "encoder x0.3")),
    *(Question(run, part) for run in ("p2-momentum", "p0-paper", "p2-paper") for part in ("encoder", "all")),
    *(Question("p2-alpha0", part) for part in ("encoder", "all")),
    *(Question(run, "all", "frozen") for run in ("p2", "p0")),
    Question("scratch", "all", "180 steps"),
    *(Question(run, part, "180 steps") for run in ("p2", "p0") for part in ("encoder", "all")),
)


def main() -> None:
    """Answer the questions in turn."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo.study", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("study-out"), help="folder for everything it makes")
    parser.add_argument("--runs", nargs="*", help="ask only about these pre-trainings")
    parser.add_argument("--seeds", type=int, default=3, help="fine-tuning seeds")
    arguments = parser.parse_args()
    out: Path = arguments.out
    counts = {"unlabelled": 512, "labelled": 8 * arguments.seeds, "validation": 64}
    folders = write_mosaics(out / "mosaics", MosaicPlan(), counts)  # type: ignore[arg-type]
    labelled, validation = read_split(folders["labelled"]), read_split(folders["validation"])
    seeds = tuple(range(arguments.seeds))
    for question in QUESTIONS:
        if arguments.runs is None or question.run in arguments.runs:
            row = answer(question, folders["unlabelled"], labelled, validation, out, seeds)
            print(as_line(row), flush=True)


def answer(
    question: Question, images: Path, labelled: InMemory, validation: InMemory, out: Path, seeds: tuple[int, ...]
) -> dict[str, Any]:
    """Return the row of a question, from `out` where it was answered before."""
    rows = out / "rows.jsonl"
    key = {**asdict(question), "seeds": list(seeds)}
    for line in rows.read_text().splitlines() if rows.exists() else []:
        row: dict[str, Any] = json.loads(line)
        if all(row[name] == value for name, value in key.items()):
            return row
    arm = Arm(question.run, weights(question, images, out), question.part)
    outcome = measure(
        arm, labelled, validation, labels=question.labels, options=FINETUNINGS[question.finetuning], seeds=seeds
    )
    row = {**key, "miou": [round(score, 2) for score in outcome.mious]}
    with rows.open("a") as file:
        file.write(json.dumps(row) + "\n")
    return row


def weights(question: Question, images: Path, out: Path) -> Path | None:
    """Return the folder of the weights that a question starts from, pre-training them if need be."""
    if question.run == "scratch":
        return None
    run = PRETRAININGS[question.run].run(images, out / question.run)
    return run if question.branch == "teacher" else student_of(run)


def student_of(run: Path) -> Path:
    """Return a folder with the student's weights of a run that exported its teacher's."""
    folder = run / "student"
    if not folder.exists():
        state = torch.load(run / "checkpoints" / "last.ckpt", map_location="cpu", weights_only=True)["learner"]
        prefix = "student.network.model."
        tensors = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        folder.mkdir()
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
        shutil.copy(run / "exported" / "model.json", folder / "model.json")
    return folder


def as_line(row: Mapping[str, Any]) -> str:
    """Return a row as a line of a Markdown table."""
    scores = row["miou"]
    spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
    each = ", ".join(f"{score:.1f}" for score in scores)
    return (
        f"| {row['run']} | {row['part']} | {row['branch']} | {row['finetuning']} | "
        f"{statistics.fmean(scores):.1f} ± {spread:.1f} | {each} |"
    )


if __name__ == "__main__":
    main()
