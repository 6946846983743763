"""`python -m benchmarks.evidence.pictures`: what the study's networks see, before and after pre-training.

Pre-trains some arms once more with the first seed, as the study does, and draws what `dovetail visualize` draws of them
on test images: principal components of encoder and decoder before and after, slots after one step and after the last.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import dovetail
from benchmarks.evidence.arms import BUDGETS
from benchmarks.evidence.questions import arm_named
from benchmarks.evidence.trial import pretraining
from benchmarks.scenes.fetch import default_cache
from benchmarks.scenes.sets import build
from dovetail.errors import DovetailError
from dovetail.report import visualize

PICTURES = Path(__file__).resolve().parents[2] / "docs" / "pictures"
MAPS = ("decon-sl-densecl", "decon-sl")  # whose components are drawn
SLOTS = "decon-sl"
SHOWN = 4


def main(arguments: list[str]) -> int:
    """Pre-train and draw."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence.pictures", description=__doc__)
    parser.add_argument("--budget", choices=BUDGETS, default="cpu", help="of the study")
    parser.add_argument("--cache", type=Path, default=default_cache(), help="folder for packages and scenes")
    parser.add_argument("--out", type=Path, default=PICTURES, help="folder for the pictures")
    options = parser.parse_args(arguments)
    budget = BUDGETS[options.budget]
    try:
        scenes = build(budget.home, options.cache, budget.scenes)
        test = scenes.folder / "images" / "test"
        with tempfile.TemporaryDirectory(prefix="pictures-") as scratch:
            folder = Path(scratch)
            runs = {name: trained(options.budget, name, scenes.unlabelled, folder / name) for name in MAPS}
            for name, run in runs.items():
                drawn = visualize.pca(run=run, images=test, out=folder / "drawn", most=SHOWN)
                keep(drawn[0], options.out / f"results_pca_{name}.png")
            start = trained(options.budget, SLOTS, scenes.unlabelled, folder / "start", max_steps=1)
            for when, run in (("before", start), ("after", runs[SLOTS])):
                for path in visualize.slots(run=run, images=test, out=folder / "drawn", most=SHOWN):
                    keep(path, options.out / f"results_{path.stem.replace('-', '_')}_{when}.png")
    except DovetailError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def trained(budget: str, name: str, images: Path, out: Path, **changes: Any) -> Path:
    """Pre-train an arm with the first seed and return the run's folder, checkpoint and all."""
    asked = pretraining(BUDGETS[budget], arm_named(name), BUDGETS[budget].seeds[0])
    dovetail.pretrain(**asked, data=images, out=out, report_every_minutes=0, **changes)
    return out


def keep(drawn: Path, place: Path) -> None:
    """Move a picture to where it stays, and say so."""
    place.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(drawn, place)
    print(place)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
