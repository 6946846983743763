"""Memory of the index and the order of photographs in shards, from a thousand of them to a hundred million.

    python -m benchmarks.scale.memory           writes benchmarks/results/scale_memory.json

Photographs are simulated: their shards are named and counted, and none is opened. Each size is a process of its own
that builds the source and asks for 2,000 steps of 256 photographs from the middle of an epoch on.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

from dovetail.data.order import StepSampler
from dovetail.data.shards.source import ShardSource

FILE = Path(__file__).parents[1] / "results" / "scale_memory.json"
SIZES = (10**3, 10**4, 10**5, 10**6, 10**7, 10**8)
PER_SHARD = 10_000
BATCH, STEPS = 256, 2000


def used(images: int) -> int:
    """Return the most bytes that index and order of so many photographs take."""
    shards = max(images // PER_SHARD, 1)
    tracemalloc.start()
    source = ShardSource([f"shards/shard-{number:06}.tar" for number in range(shards)], [images // shards] * shards)
    middle = images // BATCH // 2
    sampler = StepSampler(images, BATCH, seed=0, total_steps=middle + STEPS, start_step=middle, order_of=source.order)
    for batch in sampler:
        assert len({index for _, index in batch}) == BATCH
    return tracemalloc.get_traced_memory()[1]


def table() -> list[str]:
    """Return what was measured."""
    found = json.loads(FILE.read_text())
    lines = ["| photographs | shards | index and order, MB | a list of all numbers, MB |", "|---:|---:|---:|---:|"]
    for images, size in found.items():
        count = int(images)
        lines.append(f"| {count:,} | {max(count // PER_SHARD, 1):,} | {size / 1e6:.1f} | {count * 8 / 1e6:,.1f} |")
    return lines


def main(arguments: list[str]) -> None:
    """Measure one size, or all and write."""
    if arguments:
        print(used(int(arguments[0])))
        return
    found = {}
    for images in SIZES:
        command = [sys.executable, "-m", "benchmarks.scale.memory", str(images)]
        found[str(images)] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    FILE.write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(table()))


if __name__ == "__main__":
    main(sys.argv[1:])
