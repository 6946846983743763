"""`python -m benchmarks [NAME ...]`: run the named studies, or all of them, in sequence.

Each writes its table to `benchmarks/results/`. The command stops at the first study that fails.
"""

from __future__ import annotations

import subprocess
import sys

SPEED = (
    "speed.steps",
    "speed.attention",
    "speed.views",
    "speed.photometrics",
    "speed.decoding",
    "speed.listing",
    "speed.dense",
    "speed.training",
    "speed.compiling",
    "speed.gpu",
)
STUDIES = (*SPEED, "contrast_memory", "dense_memory", "adclr_cost", "faults", "attacks", "toy")


def main(names: list[str]) -> int:
    """Run the studies in processes of their own and return the first exit code that is not zero."""
    wrong = [name for name in names if name not in STUDIES]
    if wrong:
        print(f"Unknown study {wrong[0]!r}; choose from {', '.join(STUDIES)}.", file=sys.stderr)
        return 2
    for name in names or STUDIES:
        print(f"== {name}", flush=True)
        code = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
