"""`python -m benchmarks.bit_equality.driver TASK.json`: run jobs on the tree that PYTHONPATH names.

TASK.json: {tree, inputs, own, first, preset, jobs}. Every job's manifest, or the error that ended it, is one JSON line
of stdout; what the jobs print goes into OWN.log.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
import traceback
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

import dovetail
from benchmarks.bit_equality.jobs import JOBS, Place


def main(task_file: str) -> int:
    """Run the jobs of a task."""
    task = json.loads(Path(task_file).read_text(encoding="utf-8"))
    lines = apart(Path(f"{task['own']}.log"))
    found = Path(dovetail.__file__).resolve()
    if not found.is_relative_to(Path(task["tree"]).resolve()):
        raise SystemExit(f"dovetail was imported from {found}, which is not in {task['tree']}.")
    torch.set_num_threads(1)
    place = Place(Path(task["inputs"]), Path(task["own"]), Path(task["first"]), task["preset"])
    for name in task["jobs"]:
        print(f"== {name}", file=sys.stderr, flush=True)
        print(json.dumps(run_job(name, place)), file=lines, flush=True)
    return 0


def apart(log: Path) -> TextIO:
    """Return stdout for the results alone, and let everything else that is printed go to `log`."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    return lines


def run_job(name: str, place: Place) -> dict[str, Any]:
    """Return a job's line: {job, seconds, manifest, error}; the error is None where it has a manifest."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - what a library might draw from
    torch.manual_seed(0)
    began = time.perf_counter()
    manifest, error = None, None
    try:
        manifest = JOBS[name].compute(place)
    except Exception as problem:  # one job's failure is in the table, and the others still run
        traceback.print_exc()
        error = f"{type(problem).__name__}: {problem}".splitlines()[0]
    return {"job": name, "seconds": time.perf_counter() - began, "manifest": manifest, "error": error}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
