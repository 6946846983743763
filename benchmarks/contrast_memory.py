"""Peak memory of the contrastive losses with a large batch, computed at once and in blocks of rows.

    python -m benchmarks.contrast_memory                  # writes benchmarks/results/contrast_memory.md
    python -m benchmarks.contrast_memory --batch 512 --output /tmp/table.md

Measures only the loss and its gradient at the embeddings, each in a separate process. The peak is the resident size
that the system reports, minus the size before the loss.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import torch

from dovetail.heads.vector import VectorHeadSpec
from dovetail.objectives.contrast import KeyContrastSpec, NTXentSpec, QueueContrastSpec
from dovetail.objectives.objective import Objective
from dovetail.schedules import Moment

LOSSES = ("nt-xent", "key contrast", "queue contrast")
QUEUE = 65536
MIB = 2**20


def objective_of(loss: str, rows: int | None, dim: int) -> Objective:
    """Return the objective without a predictor, with `rows` anchors at a time or all."""
    head = VectorHeadSpec(dim=dim)
    if loss == "nt-xent":
        return NTXentSpec(rows_per_block=rows).build(head)
    if loss == "key contrast":
        return KeyContrastSpec(predictor=None, rows_per_block=rows).build(head)
    return QueueContrastSpec(queue=QUEUE, rows_per_block=rows).build(head)


def resident_peak() -> int:
    """Return the largest resident size of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def one_step(loss: str, rows: int | None, batch: int, dim: int) -> tuple[int, float, float]:
    """Return the bytes that loss and gradient add to this process's peak, the seconds they take, and the loss."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    objective = objective_of(loss, rows, dim)
    student = [torch.randn(batch, dim, requires_grad=True) for _ in range(2)]
    teacher = [torch.randn(batch, dim) for _ in range(2)]
    # Two small passes bring in what PyTorch loads on first use.
    for _ in range(2):
        few = [[view[:8] for view in views] for views in (student, teacher)]
        torch.autograd.backward(objective(*few, [], Moment(0, 1, 1)).total)
    before, start = resident_peak(), time.perf_counter()
    total = objective(student, teacher, [], Moment(0, 1, 1)).total
    torch.autograd.backward(total)
    return resident_peak() - before, time.perf_counter() - start, float(total.detach())


def measure(loss: str, rows: int | None, batch: int, dim: int) -> tuple[float, float, float]:
    """Return MiB, seconds and loss of `one_step` from a fresh process."""
    command = [sys.executable, "-m", "benchmarks.contrast_memory", "--batch", str(batch), "--dim", str(dim)]
    command += ["--measure", loss, str(rows or 0)]
    # A fixed threshold makes glibc give freed matrices back at once, so that the peak is what is in use together.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(MIB)}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    peak, seconds, total = done.stdout.split()[-3:]
    return int(peak) / MIB, float(seconds), float(total)


def table(batch: int, dim: int, rows: int) -> list[str]:
    """Return the lines of the table, one a loss and form."""
    lines = [
        "| loss | similarities | rows at a time | peak, MiB | time, s | value |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for loss in LOSSES:
        pairs = {"nt-xent": f"{2 * batch} x {2 * batch}", "key contrast": f"2 x {batch} x {batch}"}
        for block in (None, rows):
            peak, seconds, total = measure(loss, block, batch, dim)
            shape = pairs.get(loss, f"{batch} x {QUEUE}")
            lines.append(f"| {loss} | {shape} | {block or 'all'} | {peak:.0f} | {seconds:.1f} | {total:.6f} |")
            print(lines[-1], flush=True)
    return lines


def report(lines: list[str], batch: int, dim: int, command: str) -> str:
    """Return the whole page."""
    return "\n".join(
        [
            "# Memory of the contrastive losses, whole and in blocks",
            "",
            f"Loss and gradient of two views of {batch} images in {dim} dimensions, float32 on the CPU: what they add",
            "to the process's resident peak. In blocks, each block of rows is computed again in the backward pass, so",
            "that no whole matrix of similarities is kept; 1024 rows at a time is the default. MoCo v2 copies its",
            f"queue once ({QUEUE * dim * 4 / MIB:.0f} MiB here), so that the next batch may overwrite it. Times are of",
            "one run on a machine with other work.",
            "",
            *lines,
            "",
            f"Command: `{command}`  ",
            f"Machine: {platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores, 1 thread  ",
            f"Versions: Python {platform.python_version()}, torch {torch.__version__}  ",
            f"Date: {date.today().isoformat()}",
            "",
        ]
    )


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(description="Peak memory of contrastive losses, computed at once and in blocks.")
    parser.add_argument("--batch", type=int, default=4096, help="images")
    parser.add_argument("--dim", type=int, default=256, help="number of channels of the embedding")
    parser.add_argument("--rows", type=int, default=1024, help="number of rows per block")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "contrast_memory.md")
    parser.add_argument("--measure", nargs=2, metavar=("LOSS", "ROWS"), help="print one peak in bytes, time and loss")
    options = parser.parse_args(arguments)
    if options.measure:
        loss, rows = options.measure
        print(*one_step(loss, int(rows) or None, options.batch, options.dim))
        return
    command = " ".join(["python -m benchmarks.contrast_memory", *arguments])
    page = report(table(options.batch, options.dim, options.rows), options.batch, options.dim, command)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
