"""`python -m benchmarks.scenes [NAME ...] [--sheet FOLDER]`: create, describe and draw the datasets."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.scenes.fetch import default_cache
from benchmarks.scenes.sets import BUILDERS, COUNTS, SetPlan, build
from benchmarks.scenes.sheet import draw_sheet
from benchmarks.scenes.write import MANIFEST
from dovetail.errors import DovetailError


def main() -> None:
    """Make the sets that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scenes", description=__doc__)
    parser.add_argument("names", nargs="*", default=list(BUILDERS), metavar="NAME", help=", ".join(BUILDERS))
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder for packages and datasets")
    parser.add_argument("--side", type=int, default=128, help="side length of the images in pixels")
    parser.add_argument("--close", action="store_true", help="paste fewer and larger objects (stamps and rooms)")
    parser.add_argument("--share", type=float, default=1.0, help="fraction of the default number of scenes")
    parser.add_argument("--sheet", type=Path, help="folder for a contact sheet of each dataset")
    options = parser.parse_args()
    counts = {split: max(round(options.share * count), 1) for split, count in COUNTS.items()}
    for name in options.names or list(BUILDERS):
        try:
            made = build(name, options.cache, SetPlan(options.side, counts, close=options.close))
        except DovetailError as error:
            raise SystemExit(str(error)) from None
        manifest = json.loads((made.folder / MANIFEST).read_text(encoding="utf-8"))
        print(f"{name}: {made.folder}, {made.fingerprint}{'' if made.known else ', of other packages than the tables'}")
        for key in ("classes", "scenes", "objects", "pixels", "cells", "levels"):
            if key in manifest:
                print(f"  {key}: {manifest[key]}")
        if options.sheet is not None:
            options.sheet.mkdir(parents=True, exist_ok=True)
            print(f"  {draw_sheet(made.folder, options.sheet / f'{name}.png')}")


if __name__ == "__main__":
    main()
