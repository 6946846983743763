"""`python -m benchmarks.evidence.choosing`: rates and temperatures for DINO and for ADCLR over it, each by itself.

Every candidate is pre-trained with seeds that no table of the study has and its frozen encoder measured on pieces of
textures from the quarters of the photographs that are kept for choosing. What suits a method is the candidate with the
highest mean of kNN and linear probe over seeds. What is written down already is not measured again.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dovetail
from benchmarks.evidence.__main__ import RESULTS, known_data
from benchmarks.evidence.arms import BUDGETS, ENCODER, Arm, Budget
from benchmarks.evidence.records import Records
from benchmarks.evidence.trial import FACTS, NEIGHBOURS, PROBES, Bench, machine_line, pretrained
from benchmarks.scenes.fetch import default_cache
from benchmarks.scenes.sets import build
from benchmarks.scenes.textures import pieces_plan, write_pieces
from dovetail.errors import DovetailError
from dovetail.transfer.ledger import lines_of
from dovetail.transfer.results import library_versions

LINES, TABLE = "choosing.jsonl", RESULTS.parent / "token_settings.md"
SEEDS = (5, 6)  # the study's own are 0 to 4
PIECES = 400
METHODS = ("dino", "adclr")
# DINO's and ADCLR's rate is 0.004 and their teacher's temperature 0.01 in the preset for short runs.
CANDIDATES: Mapping[str, Mapping[str, float]] = {
    "rate 0.004, temperature 0.01": {},
    "rate 0.002, temperature 0.01": {"base_lr": 2e-3},
    "rate 0.008, temperature 0.01": {"base_lr": 8e-3},
    "rate 0.016, temperature 0.01": {"base_lr": 1.6e-2},
    "rate 0.032, temperature 0.01": {"base_lr": 3.2e-2},
    "rate 0.008, temperature 0.02": {"base_lr": 8e-3, "teacher_temperature": 0.02, "warmup_temperature": 0.02},
    "rate 0.016, temperature 0.02": {"base_lr": 1.6e-2, "teacher_temperature": 0.02, "warmup_temperature": 0.02},
    "rate 0.004, temperature 0.02": {"teacher_temperature": 0.02, "warmup_temperature": 0.02},
    "rate 0.004, temperature 0.04": {"teacher_temperature": 0.04, "warmup_temperature": 0.04},
}


def candidate(method: str, setting: str) -> Arm:
    """Return the arm that pre-trains a method with a candidate's options."""
    options = CANDIDATES[setting] or None
    return Arm(f"{method}, {setting}", method, "dino", (ENCODER,), options=options, network="vit", measure="frozen")


def pieces_to_choose_with(cache: Path, budget: Budget) -> Path:
    """Return a folder of pieces of one texture: train/ of left halves, val/ of the quarters beside them."""
    folder = cache / "sets" / f"pieces-{budget.side_px}px"
    if not folder.is_dir():
        fresh = folder.with_name(f".{folder.name}.new")
        plan = pieces_plan(budget.side_px, budget.scenes.seed)
        write_pieces(fresh, plan, (("train", "labelled", budget.counts["train"]), ("val", "validation", PIECES)))
        fresh.replace(folder)
    return folder


def measured_once(bench: Bench, pieces: Path, lines: Path, method: str, setting: str, seed: int) -> None:
    """Pre-train one candidate, measure it and append a line, unless there is one."""
    asked = {"budget": bench.budget.name, "method": method, "setting": setting, "seed": seed}
    if any(asked.items() <= line.items() for line in lines_of(lines)):
        return
    arm = candidate(method, setting)
    run = pretrained(bench, arm, seed)
    assert run is not None
    common: dict[str, Any] = {"run": run, "data": pieces, "image_size": bench.budget.view_px, "seed": seed}
    knn = dovetail.evaluate_knn(k=[NEIGHBOURS], out=run / "choose" / "knn", **common)
    linear = dovetail.evaluate_linear(out=run / "choose" / "linear", **common)
    assert knn is not None
    assert linear is not None
    scores = {name: round(one.rows[0].scores["top1"].mean, 6) for name, one in zip(PROBES, (knn, linear), strict=True)}
    facts = json.loads((run / FACTS).read_text(encoding="utf-8"))
    line = {
        **asked,
        "scores": scores,
        "pretrain_seconds": facts.get("pretrain_seconds"),
        "recipe": bench.budget.recipe(arm),
        "machine": machine_line(),
        "versions": library_versions(),
        "date": datetime.now(UTC).date().isoformat(),
    }
    lines.parent.mkdir(parents=True, exist_ok=True)
    with lines.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def score_of(scores: Sequence[Mapping[str, float]]) -> float:
    """Return what a candidate is chosen by: the mean of both probes over seeds."""
    return statistics.fmean(one[name] for one in scores for name in PROBES)


def table(lines: Sequence[Mapping[str, Any]], budget: Budget) -> str:
    """Return the page on what was measured."""
    text = [
        "# Rates and temperatures for DINO and ADCLR in short runs\n",
        "Top-1 accuracy in % of frozen encoders on pieces of textures from the quarters of the photographs that are "
        "kept for choosing: kNN and a linear probe, of each seed. The candidate with the highest mean of all is "
        "chosen (**bold**); the study measures it with other seeds on other quarters. Rates of 0.016 and more, "
        "and 0.008 at 0.02, were added for both once ADCLR had done best at the highest rate of the first ones.\n",
        "| method | candidate | kNN | linear | mean |",
        "| --- | --- | --- | --- | ---: |",
    ]
    for method in METHODS:
        found: dict[str, list[Mapping[str, float]]] = {}
        for line in sorted(lines, key=lambda line: line["seed"]):
            if line["budget"] == budget.name and line["method"] == method and line["setting"] in CANDIDATES:
                found.setdefault(line["setting"], []).append(line["scores"])
        best = max((score_of(scores) for scores in found.values()), default=0.0)
        for setting in CANDIDATES:
            if setting in found:
                scores, mean = found[setting], score_of(found[setting])
                each = [", ".join(f"{100 * one[name]:.1f}" for one in scores) for name in PROBES]
                shown = f"**{100 * mean:.1f}**" if mean == best else f"{100 * mean:.1f}"
                text.append(f"| {method} | {setting} | {each[0]} | {each[1]} | {shown} |")
    versions = f"Python {platform.python_version()}, PyTorch {library_versions()['torch']}"
    dates = sorted({line["date"] for line in lines})
    text += [
        f"\nCommand: `python -m benchmarks.evidence.choosing`, seeds {', '.join(map(str, SEEDS))}; the lines are in "
        f"`benchmarks/results/evidence/{LINES}`.  ",
        f"Machine: {machine_line()}, other work beside it; {versions}. Date: {' to '.join(dates)}.",
    ]
    return "\n".join(text) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Measure what is missing, one seed after another, and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence.choosing", description=__doc__)
    parser.add_argument("--budget", choices=BUDGETS, default="cpu", help="how large everything is")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS, help="instead of both")
    parser.add_argument("--settings", nargs="+", choices=CANDIDATES, default=tuple(CANDIDATES), help="instead of all")
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="instead of all")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder for scenes and weights")
    parser.add_argument("--lines", type=Path, default=RESULTS / LINES, help="file of the lines")
    parser.add_argument("--table", type=Path, default=TABLE, help="the table to write")
    options = parser.parse_args(arguments)
    budget = BUDGETS[options.budget]
    try:
        name = budget.set_of("home")
        sets = {name: build(name, options.cache, budget.scenes)}
        records = Records(Path("none"), budget, known_data(RESULTS).get(budget.name, {name: sets[name].fingerprint}))
        bench = Bench(sets, budget, records, options.cache / "runs")
        pieces = pieces_to_choose_with(options.cache, budget)
        for seed in options.seeds:
            for setting in options.settings:
                for method in options.methods:
                    measured_once(bench, pieces, options.lines, method, setting, seed)
                    options.table.write_text(table(lines_of(options.lines), budget), encoding="utf-8")
    except DovetailError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
