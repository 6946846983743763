"""Whole steps with compiled networks beside plain ones, and what the compiler takes first.

    python -m benchmarks.speed.compiling [--methods simclr dino] [--batch 8] [--rounds 4] [--out ...]

The steps are those of `benchmarks.speed.steps`, on one thread in bfloat16 where the processor has it, in seconds of the
process; forms take turns. The first step of the compiled form is the one that waits for the compiler, whose own
processes count as well.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median

import torch

from benchmarks.speed.common import RESULTS, foot, ratio, take_turns
from benchmarks.speed.steps import METHODS, SIDE_PX, form_of
from dovetail.train.compiling import compiled


def busy_seconds() -> float:
    """Return the processor seconds of this process and of those that it waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def main(arguments: Sequence[str]) -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.compiling", description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["simclr", "dino"])
    parser.add_argument("--batch", type=int, default=8, help="number of images per step")
    parser.add_argument("--rounds", type=int, default=4, help="number of rounds of all forms")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed_compile.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch._inductor.config.compile_threads = 1  # so that all of its work is this process's
    lines = [
        "| method | network | plain, s | compiled, s | plain / compiled | first step, s |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for method in options.methods:
        forms: dict[str, Callable[[], None]] = {}
        with ExitStack() as stack:
            plain, fast = form_of(method, options.batch), form_of(method, options.batch)
            stack.enter_context(compiled(fast.learner))
            began = busy_seconds()
            fast.whole()
            first = busy_seconds() - began
            forms |= {"plain": plain.whole, "compiled": fast.whole}
            seconds = take_turns(forms, rounds=options.rounds)
        cells = [method, METHODS[method][0], *(f"{median(seconds[name]):.2f}" for name in forms)]
        lines.append(f"| {' | '.join([*cells, ratio(seconds['plain'], seconds['compiled']), f'{first:.0f}'])} |")
        print(lines[-1], flush=True)
    about = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip()
    command = " ".join(["python -m benchmarks.speed.compiling", *arguments])
    spread = "Ratios are medians of rounds, with the smallest and largest."
    text = f"# Compiled networks\n\n{about} Batches of {options.batch} at {SIDE_PX} px. {spread}\n\n"
    options.out.write_text(text + "\n".join(lines) + "\n\n" + foot(command), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
