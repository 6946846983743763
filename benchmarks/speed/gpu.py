"""Training on an NVIDIA GPU: images a second, waiting, share of its matrix rate, memory; without one, the floor alone.

    python -m benchmarks.speed.gpu [--batch 256] [--steps 40] [--workers 12] [--out benchmarks/results/speed_gpu.md]

Each run is `dovetail.pretrain` with published heads in bfloat16, in a process of its own, on photographs of 640 x 480;
lightly's loop, at its examples' widths and in bfloat16 too, stands beside it where it has the method, in turns. The
floor is arithmetic: the operations of a step that benchmarks/results/scale.json counts, at the rate of large matrix
products, which is measured where there is a GPU and NVIDIA's number for an H200 (989 TFLOP/s) where there is none.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

import dovetail
from benchmarks.speed.common import RESULTS, SMALL, foot, in_process, ratio, write_photographs

METHODS = ("simclr", "densecl", "slotcon", "decon-sl", "dino", "adclr-dino")
PEERS = ("simclr", "densecl", "dino")
H200 = 989e12  # bfloat16 operations a second, dense
WARM_UP = 10
NONE = "No NVIDIA GPU was at hand when this page was written: nothing below is measured."
HEAD = ("method", "network", "GFLOP an image", "at the matrix rate, img/s")
MEASURED = ("img/s", "share of the matrix rate", "waiting for data", "peak memory, GiB", "ours / lightly")


def costs() -> dict[str, tuple[str, float]]:
    """Return each method's network and what an image adds to a step, in operations."""
    counted = json.loads((RESULTS / "scale.json").read_text(encoding="utf-8"))
    found = {}
    for method in METHODS:
        few, many = counted[method]["constants"]
        found[method] = (counted[method]["model"], (many["flops"] - few["flops"]) / (many["batch"] - few["batch"]))
    return found


def matrix_rate(side: int = 8192, rounds: int = 20) -> float:
    """Return the operations a second of large products in bfloat16 on the GPU."""
    left, right = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    seconds = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        began = time.perf_counter()
        left @ right
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / median(seconds)


def trained(
    method: str, model: str, photographs: str, batch: int, steps: int, workers: int, kind: str
) -> dict[str, Any]:
    """Train in this process and return images a second and the share of waiting after the warm-up, and peak memory."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        dovetail.pretrain(
            data=photographs,
            model=model,
            method=method,
            out=Path(folder) / "run",
            preset="paper",
            batch_size=batch,
            max_steps=steps,
            accelerator=kind,  # type: ignore[arg-type]
            devices=1,
            workers=workers,
            log_every_steps=WARM_UP,
            report_every_minutes=0,
        )
        lines = (Path(folder) / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    readings = [json.loads(line) for line in lines][1:]
    peak = torch.cuda.max_memory_allocated() if kind == "cuda" else 0
    return {
        "rate": median(one["images_per_second"] for one in readings),
        "wait": median(one["data_wait"] for one in readings),
        "peak": peak,
    }


def floor_cells(method: str, model: str, flops: float, rate: float) -> list[str]:
    """Return the cells that need no GPU."""
    return [method, model, f"{flops / 1e9:,.0f}", f"{rate / flops:,.0f}"]


def measured_cells(method: str, model: str, flops: float, rate: float, options: Any, photographs: Path) -> list[str]:
    """Run both sides in turns and return a whole row."""
    here = (options.batch, options.steps, options.workers, "cuda")
    ours: list[dict[str, Any]] = []
    theirs: list[float] = []
    for _ in range(options.rounds):
        ours.append(in_process("benchmarks.speed.gpu", "--measure", method, model, photographs, *here))
        if method in PEERS:
            peer = in_process(
                "benchmarks.speed.side_lightly", method, photographs, *here[:2], model.removeprefix("timm/"), *here[2:]
            )
            theirs.append(peer["images_per_second"])
    rates = [one["rate"] for one in ours]
    speed, wait, peak = (median(one[name] for one in ours) for name in ("rate", "wait", "peak"))
    cells = [f"{speed:,.0f}", f"{speed * flops / rate:.0%}", f"{wait:.1%}", f"{peak / 2**30:.1f}"]
    return [*floor_cells(method, model, flops, rate), *cells, ratio(rates, theirs) if theirs else "–"]


def page(rows: Sequence[Sequence[str]], *, measured: bool, rate: float, command: str) -> str:
    """Return the page."""
    about = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip()
    where = f"Measured on {torch.cuda.get_device_name()}" if measured else NONE
    names = [*HEAD, *(MEASURED if measured else ())]
    table = [names, ["---", "---", *["---:"] * (len(names) - 2)], *rows]
    lines = "\n".join(f"| {' | '.join(row)} |" for row in table)
    said = f"{where} Rate of matrix products: {rate / 1e12:,.0f} TFLOP/s."
    return f"# Training on a GPU\n\n{said}\n\n{about}\n\n{lines}\n\n{foot(command, 'lightly')}"


def main(arguments: Sequence[str]) -> int:
    """Measure where there is a GPU, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.gpu", description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--batch", type=int, default=256, help="number of images per step")
    parser.add_argument("--steps", type=int, default=40, help=f"steps per run; the first {WARM_UP} do not count")
    parser.add_argument("--workers", type=int, default=12, help="number of loading processes")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds of both sides")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed_gpu.md")
    parser.add_argument("--measure", nargs=7, help="one run of ours, printed as JSON")
    options = parser.parse_args(arguments)
    if options.measure:
        method, model, photographs, batch, steps, workers, kind = options.measure
        print(json.dumps(trained(method, model, photographs, int(batch), int(steps), int(workers), kind)))
        return 0
    if options.steps <= 2 * WARM_UP:
        parser.error(f"--steps is {options.steps}; it must be more than {2 * WARM_UP}.")
    measured = torch.cuda.is_available()
    rate = matrix_rate() if measured else H200
    with tempfile.TemporaryDirectory() as folder:
        if measured:
            write_photographs(Path(folder), 4 * options.batch, size=SMALL)
        rows = []
        for method, (model, flops) in costs().items():
            if method not in options.methods:
                continue
            if measured:
                rows.append(measured_cells(method, model, flops, rate, options, Path(folder)))
            else:
                rows.append(floor_cells(method, model, flops, rate))
            print(f"| {' | '.join(rows[-1])} |", flush=True)
    command = " ".join(["python -m benchmarks.speed.gpu", *arguments])
    options.out.write_text(page(rows, measured=measured, rate=rate, command=command), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
