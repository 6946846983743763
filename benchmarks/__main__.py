"""`python -m benchmarks [NAME ...]`: run the named studies, or all of them, one after the other.

Each writes its table to `benchmarks/results/`. Ends with the first that fails.
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
        print(f"There is no study {wrong[0]!r}; there are: {', '.join(STUDIES)}.", file=sys.stderr)
        return 2
    for name in names or STUDIES:
        print(f"== {name}", flush=True)
        code = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=False).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
