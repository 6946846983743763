"""Whole training on a processor, loading included: images a second beside lightly and lightly-train, in turns.

    python -m benchmarks.speed.training [--methods simclr densecl dino] [--lightly-train PYTHON] [--rounds 3]

All sides train the same timm network with heads of the same widths, at the same batch and views, each in a process of
its own with one loading process, on the same photographs of 640 x 480. Ours is `dovetail.pretrain` with its log,
checkpoint and monitors as users have them; lightly's is the loop of its examples, in its number format (float32);
lightly-train's is its command at its defaults, in an environment of its own (it has no DenseCL). Wall time between the
end of the fourth step and the end of the last, so that starting costs no side anything.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.speed.common import RESULTS, SMALL, foot, in_process, ratio, write_photographs

METHODS = ("simclr", "densecl", "dino")
NETWORKS = {"simclr": "resnet18", "densecl": "resnet18", "dino": "vit_tiny_patch16_224"}
WARM_UP = 4
OURS, LIGHTLY, LIGHTLY_TRAIN = "ours", "lightly", "lightly-train"
MODULES = {name: f"benchmarks.speed.side_{name.replace('-', '_')}" for name in (OURS, LIGHTLY, LIGHTLY_TRAIN)}


@dataclass(frozen=True)
class Side:
    """Who trains.

    Attributes:
        name: Of the column.
        python: The interpreter that has it.
    """

    name: str
    python: str = sys.executable

    def has(self, method: str) -> bool:
        """Whether it has a method."""
        return self.name != LIGHTLY_TRAIN or method != "densecl"


def measured(side: Side, method: str, photographs: Path, *, batch: int, steps: int, cores: int) -> float:
    """Return the images a second of one side in a fresh process."""
    module = MODULES[side.name]
    facts = in_process(module, method, photographs, batch, steps, python=side.python, cores=cores)
    return float(facts["images_per_second"])


def version_of(python: str) -> str:
    """Return which lightly-train an interpreter has."""
    code = "from importlib.metadata import version; print(version('lightly-train'))"
    return subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def line(method: str, rates: dict[str, list[float]]) -> str:
    """Return a row: all sides' rates, and how many times as fast as each peer ours is."""
    ours, *peers = rates.values()
    shown = [f"{median(rate):.1f}" if rate else "–" for rate in rates.values()]
    ratios = [ratio(ours, peer) if peer else "–" for peer in peers]
    return f"| {' | '.join([method, NETWORKS[method], *shown, *ratios])} |"


def head(sides: Sequence[Side]) -> list[str]:
    """Return the table's first two lines."""
    names = [f"{side.name}, img/s" for side in sides] + [f"ours / {side.name}" for side in sides[1:]]
    return [f"| method | network | {' | '.join(names)} |", "|---|---|" + "---:|" * len(names)]


def main(arguments: Sequence[str]) -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.training", description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--batch", type=int, default=32, help="number of images per step")
    parser.add_argument("--steps", type=int, default=12, help=f"steps per run; the first {WARM_UP} do not count")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds of all sides")
    parser.add_argument("--lightly-train", metavar="PYTHON", help="Python of an environment with lightly-train")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1, help="threads of each side")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed_training.md")
    options = parser.parse_args(arguments)
    if options.steps <= WARM_UP:
        parser.error(f"--steps is {options.steps}; it must be more than {WARM_UP}.")
    sides = [Side(OURS), Side(LIGHTLY)]
    if options.lightly_train:
        sides.append(Side(LIGHTLY_TRAIN, options.lightly_train))
    lines = head(sides)
    with tempfile.TemporaryDirectory() as folder:
        photographs = Path(folder) / "photographs"
        write_photographs(photographs, 4 * options.batch, size=SMALL)
        for method in options.methods:
            rates: dict[str, list[float]] = {side.name: [] for side in sides}
            for _ in range(options.rounds):
                for side in (one for one in sides if one.has(method)):
                    rate = measured(
                        side, method, photographs, batch=options.batch, steps=options.steps, cores=options.cores
                    )
                    rates[side.name].append(rate)
            lines.append(line(method, rates))
            print(lines[-1], flush=True)
    about = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip()
    shown = ["PYTHON" if one == options.lightly_train else one for one in arguments]  # a path of this machine
    command = " ".join(["python -m benchmarks.speed.training", *shown])
    text = (
        f"# Training on a processor\n\nBatches of {options.batch}, {options.steps} steps a run, {options.rounds} "
        f"rounds, {options.cores} threads. {about} Ratios are medians of rounds, with the smallest and largest.\n\n"
    )
    text += "\n".join(lines) + "\n\n" + foot(command, "lightly")
    if options.lightly_train:
        text = text.replace("\nDate:", f"\nlightly-train: {version_of(options.lightly_train)}  \nDate:")
    options.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
