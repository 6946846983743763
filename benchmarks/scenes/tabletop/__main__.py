"""`python -m benchmarks.scenes.tabletop [--pack FOLDER]`: tell how many scenes are rendered, pack some for the demo."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.scenes.fetch import default_cache
from benchmarks.scenes.tabletop.demo import pack_demo
from benchmarks.scenes.tabletop.frames import frames_folder, frames_ready
from dovetail.errors import DovetailError


def main() -> None:
    """Do what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scenes.tabletop", description=__doc__)
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder for packages and sets")
    parser.add_argument("--side", type=int, default=160, help="side of the images in pixels")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes")
    parser.add_argument("--pack", type=Path, metavar="FOLDER", help="write the demo's scenes into this folder")
    options = parser.parse_args()
    folder = frames_folder(options.cache, options.side, options.seed)
    print(f"{folder}: " + ", ".join(f"{count} {split}" for split, count in frames_ready(folder).items()))
    if options.pack is not None:
        try:
            made = pack_demo(options.pack, options.cache)
        except DovetailError as error:
            raise SystemExit(str(error)) from None
        print(f"{made.folder}, {made.fingerprint}")


if __name__ == "__main__":
    main()
