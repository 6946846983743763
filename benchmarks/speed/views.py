"""From a JPEG to augmented views on one core: ours against lightly's transforms and torchvision's stock ones.

    python -m benchmarks.speed.views [--images 64] [--rounds 5] [--out benchmarks/results/speed_views.md]

Milliseconds of processor time an image, decoding included; a GPU would do our photometrics, so the loading process's
part stands beside the whole. Every peer has its own defaults at the same number and size of views and reads with Pillow
as its examples do. Forms take turns.

Of the photometrics' time, hue and blur take the most. Tried without gain: hue in parts of an image that fit the
second-level cache or with NumPy (more calls), convolutions for the blur (up to 5 times as long as products of blocks),
crops kept as [H, W, C] (what loading gains, photometrics lose), other sizes of what is augmented at a time.

Photographs of 12 megapixels are decoded at a quarter, at which views differ from those of the whole photograph by less
than half a grey level (speed_decoding.md). That is not four times as fast as decoding all of it with Pillow, as the
photograph's entropy coding has to be undone at any size: the row of an eighth is little else.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightly.transforms import DenseCLTransform, DINOTransform
from PIL import Image
from torchvision.transforms import v2

from benchmarks.speed.common import LARGE, RESULTS, SMALL, foot, ratio, take_turns, write_photographs
from dovetail.data.loader import ViewDataset
from dovetail.data.reading.decode import open_file
from dovetail.data.sources import PathSource
from dovetail.networks.build import build_network
from dovetail.recipes.table import build
from dovetail.views.batch import collate, to_views
from dovetail.views.plan import IMAGENET_MEAN, IMAGENET_STD, ViewPlan

BATCH = 16
Forms = dict[str, Callable[[], None]]


def ours(paths: Sequence[Path], plan: ViewPlan, *, photometrics: bool) -> Callable[[], None]:
    """Return a pass over the photographs: crops as a loading process makes them, and photometrics on the processor."""
    dataset = ViewDataset(PathSource(paths), plan, seed=0)

    def go() -> None:
        for first in range(0, len(paths), BATCH):
            batch = collate([dataset[(0, index)] for index in range(first, min(first + BATCH, len(paths)))])
            if photometrics:
                to_views(batch, plan)

    return go


def theirs(paths: Sequence[Path], transform: Callable[[Image.Image], Any]) -> Callable[[], None]:
    """Return a pass over the photographs with a transform of Pillow images."""

    def go() -> None:
        for path in paths:
            with Image.open(path) as image:
                transform(image.convert("RGB"))

    return go


def at_an_eighth(paths: Sequence[Path]) -> Callable[[], None]:
    """Return a pass over the photographs that decodes them as small as a decoder can."""

    def go() -> None:
        for path in paths:
            open_file(path, 3).decode(8)

    return go


def stock() -> Callable[[Image.Image], Any]:
    """Return MoCo v2's two views from torchvision's own transforms, on uint8 tensors where they allow it."""
    one = v2.Compose(
        [
            v2.PILToTensor(),
            v2.RandomResizedCrop(224, scale=(0.2, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], p=0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )
    return lambda image: (one(image), one(image))


def plan_of(method: str, **options: Any) -> ViewPlan:
    """Return the views of a method at paper scale."""
    name = "timm/vit_tiny_patch16_224" if method == "dino" else "timm/resnet18"
    return build(method, build_network(name, image_size=224).taps, options).views


def small_forms(paths: Sequence[Path]) -> dict[str, Forms]:
    """Return the forms for photographs of 640 x 480, by what they make."""
    two, many = plan_of("densecl"), plan_of("dino", local_crops=6)
    return {
        "two views of 224 px": {
            "ours, loading process alone": ours(paths, two, photometrics=False),
            "ours, with photometrics": ours(paths, two, photometrics=True),
            "lightly's DenseCLTransform": theirs(paths, DenseCLTransform()),
            "torchvision's transforms": theirs(paths, stock()),
            "decoding with Pillow alone": theirs(paths, lambda image: image),
        },
        "two views of 224 px and six of 96 px": {
            "ours, loading process alone": ours(paths, many, photometrics=False),
            "ours, with photometrics": ours(paths, many, photometrics=True),
            "lightly's DINOTransform": theirs(paths, DINOTransform()),
        },
    }


def large_forms(paths: Sequence[Path]) -> dict[str, Forms]:
    """Return the forms for photographs of 12 megapixels."""
    two = plan_of("densecl")
    return {
        "two views of 224 px of 12 megapixels": {
            "ours, with photometrics": ours(paths, two, photometrics=True),
            "lightly's DenseCLTransform": theirs(paths, DenseCLTransform()),
            "decoding with Pillow alone": theirs(paths, lambda image: image),
            "decoding at an eighth alone": at_an_eighth(paths),
        }
    }


def table(groups: dict[str, Forms], images: int, *, rounds: int) -> list[str]:
    """Measure and return the lines of a table."""
    lines = []
    for title, forms in groups.items():
        seconds = take_turns(forms, rounds=rounds)
        base = seconds["ours, with photometrics"]
        for name, took in seconds.items():
            cells = [title, name, f"{1e3 * median(took) / images:.2f}", ratio(took, base)]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return lines


def main(arguments: list[str]) -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.views", description=__doc__)
    parser.add_argument(
        "--images", type=int, default=64, help="number of images of 640 x 480; an eighth as many large ones"
    )
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds of all forms")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed_views.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lines = ["| what | form | ms an image | times ours, with photometrics |", "|---|---|---:|---:|"]
    with tempfile.TemporaryDirectory() as folder:
        small = write_photographs(Path(folder) / "small", options.images, size=SMALL)
        few = max(options.images // 8, 1)
        large = write_photographs(Path(folder) / "large", few, size=LARGE)
        lines += table(small_forms(small), options.images, rounds=options.rounds)
        lines += table(large_forms(large), few, rounds=max(options.rounds // 2, 1))
    about = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip()
    command = " ".join(["python -m benchmarks.speed.views", *arguments])
    text = f"# From a JPEG to views\n\n{about} Ratios are medians of rounds, with the smallest and largest.\n\n"
    options.out.write_text(text + "\n".join(lines) + "\n\n" + foot(command, "lightly", "torchvision"), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
