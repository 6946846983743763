"""Vary options of one run and leave one table.

    python -m benchmarks.sweep --config base.yaml --vary recipe.alpha=0,0.25,0.5,0.75 recipe.lateral_dropout=0,0.5 \
        --seeds 3 --out sweeps/decon [--probe mosaics --classes 10]

The config has the options of `dovetail pretrain`, data and model included. Every combination of the values is an arm,
and every arm is run once for each seed, in `out/ARM/seed-N`. Runs that are finished are left as they are and runs that
were stopped go on where they stopped, so the same command may be given again, or with more seeds or values. With
`--probe`, a folder with `labelled` and `test` in it (each with `images` and `masks`), the frozen features of every run
and of a randomly initialised network are scored by a linear classifier of pixels; see `benchmarks.probe`. The table is
written to `out/sweep.md` and `out/sweep.json`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

import dovetail
from benchmarks.probe import ProbeData, probe, probe_groups
from dovetail.errors import DovetailError, unknown_name
from dovetail.networks.build import build_network
from dovetail.options import body, option_infos
from dovetail.recipes.table import options_of
from dovetail.run.options import PretrainOptions

Values = dict[str, Any]
"""Of one arm: a value for each varied option, by its dotted name."""

SCORES = "sweep-scores.json"


@dataclass(frozen=True)
class Sweep:
    """What is varied, and where the runs are.

    Attributes:
        base: Options of `dovetail pretrain`.
        varied: The values of each varied option, by its dotted name.
        seeds: Runs of each arm; their seeds are 0, 1, ...
        out: Folder of all runs and of the table.
    """

    base: Mapping[str, Any]
    varied: Mapping[str, Sequence[Any]]
    seeds: int
    out: Path

    def arms(self) -> list[Values]:
        """Return every combination of the values, the last option fastest."""
        return [dict(zip(self.varied, values, strict=True)) for values in itertools.product(*self.varied.values())]

    def folder(self, arm: Values, seed: int) -> Path:
        """Return the folder of one run."""
        return self.out / arm_name(arm) / f"seed-{seed}"


@dataclass(frozen=True)
class Row:
    """An arm's results: for each number, one value a seed. Numbers: "loss" at the end, and the probe's scores."""

    arm: Values
    numbers: Mapping[str, Sequence[float]]


def arm_name(arm: Values) -> str:
    """Return an arm's name for its folder: the options' names, with their values."""
    named = (f"{option.removeprefix('recipe.')}={value}" for option, value in arm.items())
    return ",".join(named).replace("/", "-").replace(" ", "") or "base"


def parse_vary(words: Sequence[str]) -> dict[str, list[Any]]:
    """Return {option: values} of words such as "recipe.alpha=0,0.5"; values are read as in YAML.

    Raises:
        DovetailError: For a word without values, an option given twice, or a value given twice.
    """
    varied: dict[str, list[Any]] = {}
    for word in words:
        option, equals, values = word.partition("=")
        if not equals or not option or not values:
            raise DovetailError(f"{word!r} has no values to vary; write OPTION=VALUE,VALUE such as recipe.alpha=0,0.5.")
        if option in varied:
            raise DovetailError(f"{option} is varied twice; put all its values into one list.")
        varied[option] = [yaml.safe_load(value) for value in values.split(",")]
        if len(set(map(str, varied[option]))) < len(varied[option]):
            raise DovetailError(f"{option} has a value twice in {values!r}; use each value once.")
    return varied


def with_values(base: Mapping[str, Any], arm: Values) -> dict[str, Any]:
    """Return the options of `pretrain` with an arm's values put in at their dotted names."""
    options = {**base, "recipe": dict(base.get("recipe") or {})}
    for name, value in arm.items():
        group, dot, option = name.partition(".")
        if not dot:
            options[name] = value
        elif group == "recipe":
            options["recipe"][option] = value
        else:
            raise DovetailError(f"{name!r} is not an option; vary recipe.OPTION or an option of dovetail pretrain.")
    return options


def check_options(options: Mapping[str, Any]) -> None:
    """Raise `DovetailError` for an option that neither `pretrain` nor the method's recipe has."""
    known = set(option_infos(PretrainOptions)) - {"out", "seed", "resume", "overwrite"}
    for option in options:
        if option not in known:
            raise unknown_name("option of a sweep's runs", option, sorted(known))
    method = options.get("method", "decon-sl")
    for option in options["recipe"]:
        if option not in options_of(method):
            raise unknown_name(f"option of {method}", option, options_of(method))


def check_base(sweep: Sweep) -> None:
    """Raise `DovetailError` where the folder holds a sweep whose runs had other options in common."""
    path = sweep.out / "sweep.json"
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))["base"]
        if before != json.loads(json.dumps(sweep.base, default=str)):
            raise DovetailError(f"{sweep.out} contains a sweep of another config; choose another folder with --out.")


def run_sweep(sweep: Sweep, data: ProbeData | None) -> list[Row]:
    """Run what is left to run and return the rows of the table.

    Raises:
        DovetailError: For an option that is not known, or a folder with a sweep over another base.
    """
    arms = sweep.arms()
    for arm in arms:
        check_options(with_values(sweep.base, arm))  # a wrong name is found before the first run, not after hours
    check_base(sweep)
    rows = []
    for arm in arms:
        results = [run_arm(sweep, arm, seed, data) for seed in range(sweep.seeds)]
        rows.append(Row(arm, {name: [result[name] for result in results] for name in results[0]}))
        print(f"{arm_name(arm)}: {summary(rows[-1])}", flush=True)
        write_table(sweep, rows)
    return rows


def run_arm(sweep: Sweep, arm: Values, seed: int, data: ProbeData | None) -> dict[str, float]:
    """Return the numbers of one run, which is started, resumed or only read."""
    folder = sweep.folder(arm, seed)
    options = with_values(sweep.base, arm) | {"seed": seed, "out": folder}
    if not (folder / "exported" / "model.safetensors").is_file():
        started = (folder / "config.yaml").is_file()
        # A file may hold what has another name on the command line, such as recipe.base_lr.
        from_file = {f"recipe.{name}" for name in sweep.base.get("recipe") or {}} - arm.keys()
        body(dovetail.pretrain)(PretrainOptions.given(options | {"resume": started}, from_file=from_file))
    numbers = {"loss": last_loss(folder)}
    return numbers if data is None else numbers | scores_of(folder, seed, data)


def last_loss(folder: Path) -> float:
    """Return the loss in the last line of a run's log."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return float(json.loads(lines[-1])["loss"])


def scores_of(folder: Path, seed: int, data: ProbeData) -> dict[str, float]:
    """Return the probe's scores of a run's network, and of its gain over a random one; kept in the run's folder."""
    kept = folder / SCORES
    if kept.is_file():
        found: dict[str, float] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    saved = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    side = int(saved["image_size"] or 224)
    trained = build_network(dovetail.load(folder), image_size=side)
    torch.manual_seed(seed)
    fresh = build_network(saved["model"], in_channels=saved["in_channels"], image_size=side)
    learned, random = (probe(network, data, probe_groups(network)) for network in (trained, fresh))
    scores = learned | {f"{part} gain": learned[part] - random[part] for part in learned}
    kept.write_text(json.dumps(scores) + "\n", encoding="utf-8")
    return scores


def spread(values: Sequence[float]) -> str:
    """Return the mean, and the standard deviation over seeds where there are several."""
    mean = f"{statistics.mean(values):.4g}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.2g}"


def summary(row: Row) -> str:
    """Return a row's numbers in one line."""
    return ", ".join(f"{name} {spread(values)}" for name, values in row.numbers.items())


def table(sweep: Sweep, rows: Sequence[Row]) -> str:
    """Return the table of the rows in markdown."""
    header = [*sweep.varied, *rows[0].numbers]
    lines = [" | ".join(header), " | ".join("---" for _ in header)]
    for row in rows:
        cells = [*(str(value) for value in row.arm.values()), *(spread(values) for values in row.numbers.values())]
        lines.append(" | ".join(cells))
    return "\n".join(f"| {line} |" for line in lines)


def write_table(sweep: Sweep, rows: Sequence[Row]) -> None:
    """Write sweep.md and sweep.json."""
    shown = {name: value for name, value in sweep.base.items() if name != "recipe"}
    note = f"{sweep.base.get('method', 'decon-sl')}: mean and standard deviation over {sweep.seeds} seed(s)."
    sweep.out.mkdir(parents=True, exist_ok=True)
    page = f"# Sweep\n\n{note}\n\n{table(sweep, rows)}\n\nAll arms: `{json.dumps(shown, default=str)}`\n"
    (sweep.out / "sweep.md").write_text(page, encoding="utf-8")
    content = {
        "base": dict(sweep.base),
        "seeds": sweep.seeds,
        "arms": [{"values": row.arm, **{name: list(values) for name, values in row.numbers.items()}} for row in rows],
    }
    (sweep.out / "sweep.json").write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.sweep", description="Run every combination of option values and write one table."
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file with options of dovetail pretrain")
    parser.add_argument(
        "--vary",
        nargs="+",
        default=[],
        metavar="OPTION=VALUES",
        help="options and values to vary, such as recipe.alpha=0,0.5",
    )
    parser.add_argument("--seeds", type=int, default=1, help="number of runs per arm")
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs and of the table")
    parser.add_argument("--probe", type=Path, help="folder with labelled/ and test/ images and masks")
    parser.add_argument("--classes", type=int, default=10, help="number of classes in the masks")
    options = parser.parse_args(arguments)
    try:
        if options.seeds < 1:
            raise DovetailError(f"--seeds is {options.seeds}; it must be at least 1.")
        if not options.config.is_file():
            raise DovetailError(f"There is no file {options.config}; pass a YAML file with --config.")
        base = yaml.safe_load(options.config.read_text(encoding="utf-8")) or {}
        sweep = Sweep(base, parse_vary(options.vary), options.seeds, options.out)
        data = None
        if options.probe is not None:
            folders = options.probe / "labelled", options.probe / "test"
            data = ProbeData.open(*folders, classes=options.classes)
        rows = run_sweep(sweep, data)
        print(f"\n{table(sweep, rows)}\n\nThe table is in {sweep.out / 'sweep.md'}.")
    except DovetailError as error:
        print(f"sweep: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
