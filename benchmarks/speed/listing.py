"""A million photographs: how long listing takes, and how much memory a process that trains on them holds.

    python -m benchmarks.speed.listing [--images 1000000] [--out benchmarks/results/speed_listing.md]

The folder holds empty files, a thousand in a folder, with names of 30 characters; nothing is decoded. Each start is a
process of its own: it lists the folder, and draws the order of an epoch and of the one after it. The second start finds
the operating system's cache of folders warm; nothing of ours is stored between them. Memory is the resident size that
listing and order add.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.speed.common import RESULTS, foot

IN_A_FOLDER = 1000
CHILD = """
import json, resource, sys, time
from pathlib import Path
from dovetail.data.open import open_source
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
before, began = resident(), time.perf_counter()
source = open_source(sys.argv[1])
listed = time.perf_counter()
orders = [source.order(seed=0, epoch=epoch) for epoch in (0, 1)]
first = [order[0:64] for order in orders]
done = time.perf_counter()
print(json.dumps({"images": source.num_images, "list_s": listed - began, "order_s": done - listed,
                  "mib": (resident() - before) / 2**20}))
"""


def fill(folder: Path, images: int) -> None:
    """Make empty files that are named as photographs."""
    for first in range(0, images, IN_A_FOLDER):
        inner = folder / f"{first // IN_A_FOLDER:06}"
        inner.mkdir(parents=True)
        for number in range(first, min(first + IN_A_FOLDER, images)):
            (inner / f"photograph_of_wheat_{number:07}.jpg").touch()


def start(folder: Path) -> dict[str, float]:
    """Return what one start takes."""
    done = subprocess.run([sys.executable, "-c", CHILD, str(folder)], check=True, capture_output=True, text=True)
    facts: dict[str, float] = json.loads(done.stdout)
    return facts


def main(arguments: Sequence[str]) -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.listing", description=__doc__)
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--out", type=Path, default=RESULTS / "speed_listing.md")
    options = parser.parse_args(arguments)
    lines = ["| start | images | listing, s | two epochs' order, s | memory, MiB |", "|---|---:|---:|---:|---:|"]
    with tempfile.TemporaryDirectory() as folder:
        fill(Path(folder), options.images)
        os.sync()
        for name in ("first", "second"):
            facts = start(Path(folder))
            cells = [name, f"{facts['images']:,}", f"{facts['list_s']:.2f}", f"{facts['order_s']:.2f}"]
            lines.append(f"| {' | '.join(cells)} | {facts['mib']:.0f} |")
            print(lines[-1], flush=True)
    about = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip()
    command = " ".join(["python -m benchmarks.speed.listing", *arguments])
    text = f"# A million photographs\n\n{about}\n\n"
    options.out.write_text(text + "\n".join(lines) + "\n\n" + foot(command), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
