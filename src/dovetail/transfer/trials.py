"""Fine-tuning from several starting points, with several shares of the labels, several times: one table."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dovetail.errors import DovetailError
from dovetail.transfer.results import Row, over_seeds
from dovetail.transfer.start import Start
from dovetail.transfer.subsets import check_fraction, fraction_of

TRIALS = "trials.jsonl"


@dataclass(frozen=True)
class Trial:
    """One fine-tuning.

    Attributes:
        start: What it starts from.
        fraction: Share of the labelled images.
        seed: Of subset, new weights, order and augmentation.
        indices: The labelled images.
        keep: Whether its weights are those that are kept.
    """

    start: Start
    fraction: float
    seed: int
    indices: tuple[int, ...]
    keep: bool


def run_trials(
    starts: Sequence[Start],
    fractions: Sequence[float],
    seeds: Sequence[int],
    *,
    total: int,
    order: Callable[[int], Sequence[int]],
    fit: Callable[[Trial], Mapping[str, float]],
    out: Path,
) -> tuple[Row, ...]:
    """Run every trial and return the table, a row for each starting point and fraction.

    Weights are kept of the first starting point, the largest fraction and the first seed. Each trial's scores are
    written to trials.jsonl when it ends.

    Args:
        starts: Starting points.
        fractions: Shares of the labelled images.
        seeds: One trial for each.
        total: Labelled images there are.
        order: Seed -> the order whose beginnings are the subsets; asked only where a fraction is below 1.
        fit: Fine-tunes and gives the scores.
        out: Folder for trials.jsonl.
    """
    if not fractions or not seeds:
        raise DovetailError("There is no trial to run; give at least one --fraction and one of --seeds.")
    for fraction in fractions:
        check_fraction(fraction)
    orders = {seed: order(seed) if min(fractions) < 1 else range(total) for seed in seeds}
    out.mkdir(parents=True, exist_ok=True)
    (out / TRIALS).unlink(missing_ok=True)
    rows: list[Row] = []
    for start in starts:
        for fraction in dict.fromkeys(fractions):
            found: list[Mapping[str, float]] = []
            for seed in seeds:
                indices = tuple(fraction_of(orders[seed], fraction))
                keep = start == starts[0] and fraction == max(fractions) and seed == seeds[0]
                began = time.monotonic()
                scores = fit(Trial(start, fraction, seed, indices, keep))
                found.append(scores)
                report(out, start, fraction, seed, len(indices), scores, time.monotonic() - began)
            setting = {"start": start, "fraction": fraction, "images": len(fraction_of(range(total), fraction))}
            rows.append(Row(setting, {name: over_seeds([one[name] for one in found]) for name in found[0]}))
    return tuple(rows)


def report(
    out: Path, start: str, fraction: float, seed: int, images: int, scores: Mapping[str, float], seconds: float
) -> None:
    """Write a line about a trial to trials.jsonl, and print one."""
    line = {"start": start, "fraction": fraction, "seed": seed, "images": images, "seconds": round(seconds, 1)}
    with (out / TRIALS).open("a", encoding="utf-8") as file:
        file.write(json.dumps({**line, "scores": dict(scores)}) + "\n")
    shown = ", ".join(f"{name} {100 * value:.2f}" for name, value in scores.items())
    print(f"start {start}, {images} images, seed {seed}: {shown} ({seconds:.0f} s)", flush=True)
