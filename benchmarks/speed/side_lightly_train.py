"""lightly-train's side of `benchmarks.speed.training`: METHOD PHOTOGRAPHS BATCH STEPS, with the Python that has it.

Its own command at its defaults (number format, transforms, loss, optimiser, log), with the same timm networks and
widths as ours; it has no DenseCL. It is under the AGPL, so it has an extra of its own
(`bench-lightly-train`), best in an environment of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
import time
from typing import Any

from benchmarks.speed.training import NETWORKS, WARM_UP

os.environ["LIGHTLY_TRAIN_EVENTS_DISABLED"] = "1"  # it reports its use otherwise
METHODS: dict[str, dict[str, Any]] = {
    "simclr": {"method_args": {"hidden_dim": 512, "output_dim": 128}},
    "dino": {"method_args": {"hidden_dim": 512, "bottleneck_dim": 64, "output_dim": 2048}},
}


def main() -> None:
    """Train, and print the images a second after the warm-up as JSON."""
    import lightly_train
    from torch.optim.optimizer import register_optimizer_step_post_hook

    method, photographs, batch, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    ends: list[float] = []
    register_optimizer_step_post_hook(lambda *_: ends.append(time.perf_counter()))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        lightly_train.pretrain(
            out=f"{folder}/run",
            data=photographs,
            model=f"timm/{NETWORKS[method]}",
            method=method,
            batch_size=batch,
            num_workers=1,
            accelerator="cpu",
            devices=1,
            epochs=steps,
            trainer_args={"max_steps": steps},
            **METHODS[method],
        )
    seconds = ends[steps - 1] - ends[WARM_UP - 1]
    print(json.dumps({"images_per_second": (steps - WARM_UP) * batch / seconds}))


if __name__ == "__main__":
    main()
