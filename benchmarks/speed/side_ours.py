"""Our side of `benchmarks.speed.training`, in a process of its own: METHOD PHOTOGRAPHS BATCH STEPS."""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import dovetail
from benchmarks.speed.training import NETWORKS, WARM_UP

# The widths of lightly's examples.
HEADS: dict[str, dict[str, Any]] = {
    "simclr": {"hidden": 512, "dim": 128},
    "densecl": {"hidden": 512, "dim": 128, "queue": 4096},
    "dino": {"hidden": 512, "bottleneck": 64, "prototypes": 2048, "local_crops": 6},
}


def main() -> None:
    """Train, and print the images a second after the warm-up as JSON."""
    method, photographs, batch, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        dovetail.pretrain(
            data=photographs,
            model=f"timm/{NETWORKS[method]}",
            method=method,
            out=Path(folder) / "run",
            preset="paper",
            recipe=HEADS[method],
            batch_size=batch,
            max_steps=steps,
            accelerator="cpu",
            workers=1,
            log_every_steps=WARM_UP,
        )
        readings = [json.loads(one) for one in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    pairs = list(itertools.pairwise(readings))
    seconds = sum((now["step"] - before["step"]) * batch / now["images_per_second"] for before, now in pairs)
    print(json.dumps({"images_per_second": (steps - readings[0]["step"]) * batch / seconds}))


if __name__ == "__main__":
    main()
