"""Whole training on a processor, loading included: images a second beside lightly, in turns.

    python -m benchmarks.speed.training [--methods simclr densecl dino] [--rounds 3] [--out ...]

Both sides train the same timm network with heads of the same widths, at the same batch and views, each in a process of
its own with one loading process, on the same photographs of 640 x 480. Ours is `dovetail.pretrain` with its log,
checkpoint and monitors as users have them; lightly's is the loop of its examples, in its number format (float32). Wall
time between the end of the fourth step and the end of the last, so that starting costs neither side anything.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from benchmarks.speed.common import RESULTS, SMALL, foot, ratio, write_photographs

METHODS = ("simclr", "densecl", "dino")
NETWORKS = {"simclr": "resnet18", "densecl": "resnet18", "dino": "vit_tiny_patch16_224"}
WARM_UP = 4
SIDES = {"ours": "benchmarks.speed.side_ours", "lightly": "benchmarks.speed.side_lightly"}


def measured(side: str, method: str, photographs: Path, *, batch: int, steps: int, cores: int) -> float:
    """Return the images a second of one side in a fresh process."""
    command = [sys.executable, "-m", SIDES[side], method, str(photographs), str(batch), str(steps)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(cores)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{side} of {method} failed:\n{done.stderr[-2000:]}")
    return float(json.loads(done.stdout.strip().splitlines()[-1])["images_per_second"])


def line(method: str, rates: dict[str, list[float]]) -> str:
    """Return a row: both sides' rates, and how many times as fast ours is."""
    ours, peer = rates["ours"], rates["lightly"]
    cells = [method, NETWORKS[method], f"{median(ours):.1f}", f"{median(peer):.1f}", ratio(ours, peer)]
    return f"| {' | '.join(cells)} |"


def main(arguments: Sequence[str]) -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.training", description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--batch", type=int, default=32, help="images in a step")
    parser.add_argument("--steps", type=int, default=12, help=f"of each run, of which the first {WARM_UP} do not count")
    parser.add_argument("--rounds", type=int, default=3, help="of both sides")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="threads of either side")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed_training.md")
    options = parser.parse_args(arguments)
    if options.steps <= WARM_UP:
        parser.error(f"--steps is {options.steps}; it must be more than {WARM_UP}.")
    lines = ["| method | network | ours, img/s | lightly, img/s | ours / lightly |", "|---|---|---:|---:|---:|"]
    with tempfile.TemporaryDirectory() as folder:
        photographs = Path(folder) / "photographs"
        write_photographs(photographs, 4 * options.batch, size=SMALL)
        for method in options.methods:
            rates: dict[str, list[float]] = {side: [] for side in SIDES}
            for _ in range(options.rounds):
                for side in SIDES:
                    rate = measured(
                        side, method, photographs, batch=options.batch, steps=options.steps, cores=options.cores
                    )
                    rates[side].append(rate)
            lines.append(line(method, rates))
            print(lines[-1], flush=True)
    about = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip()
    command = " ".join(["python -m benchmarks.speed.training", *arguments])
    text = (
        f"# Training on a processor\n\nBatches of {options.batch}, {options.steps} steps a run, {options.rounds} "
        f"rounds, {options.cores} threads. {about} Ratios are medians of rounds, with the smallest and largest.\n\n"
    )
    options.out.write_text(text + "\n".join(lines) + "\n\n" + foot(command, "lightly"), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
