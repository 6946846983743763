"""`python -m benchmarks.scenes.tabletop [--pack FOLDER] [--neighbours]`: show how many scenes are rendered, pack
some for the demo, or measure how well colour predicts their classes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.scenes.fetch import default_cache
from benchmarks.scenes.tabletop.demo import pack_demo
from benchmarks.scenes.tabletop.frames import frames_folder, frames_ready
from dovetail.errors import DovetailError

NEIGHBOURS = Path("benchmarks/results/tabletop_neighbours.md")


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scenes.tabletop", description=__doc__)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder for packages and datasets")
    parser.add_argument("--side", type=int, default=160, help="side length of the images in pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed for the scenes")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="write the demo's scenes into this folder")
    parser.add_argument("--neighbours", action="store_true", help=f"measure what colour tells; writes {NEIGHBOURS}")
    options = parser.parse_args()
    folder = frames_folder(options.cache, options.side, options.seed)
    print(f"{folder}: " + ", ".join(f"{count} {split}" for split, count in frames_ready(folder).items()))
    try:
        if options.pack is not None:
            made = pack_demo(options.pack, options.cache)
            print(f"{made.folder}, {made.fingerprint}")
        if options.neighbours:
            from benchmarks.scenes.tabletop.neighbours import write_table

            write_table(folder, NEIGHBOURS)
            print(NEIGHBOURS.read_text(encoding="utf-8"))
    except DovetailError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
