"""Colour and sharpness of a batch: our fused form against kornia's and torchvision's augmentations.

    python -m benchmarks.speed.photometrics [--images 32] [--rounds 7] [--out benchmarks/results/speed_photometrics.md]

Milliseconds of processor time an image: uint8 crops [32, 3, 224, 224] to normalised float32, drawing included, on one
core. All do the same work with the same strengths: jitter in random order, grey, Gaussian blur with a sigma of its own
for each image, solarise, normalise. Forms take turns; every round has other draws. kornia works on the batch (it draws
the order of the jitter once for all of it), torchvision image by image, as one call has one draw; ours draws for each
image, and works image by image on a processor and operation by operation on a GPU. kornia and torchvision blur with a
kernel of 13 pixels, as far as ours with Pillow's three boxes goes at the largest sigma.

Rows of one operation have it alone, with probability 1.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from benchmarks.speed.common import RESULTS, foot, piece_of, ratio, take_turns
from dovetail.views import photometric
from dovetail.views.batch import augment
from dovetail.views.plan import IMAGENET_MEAN, IMAGENET_STD, Photometric

SIDE_PX = 224
KERNEL_PX = 13
ALL = Photometric(saturation=0.4, solarise_p=0.2)
NOTHING = Photometric(jitter_p=0.0, grey_p=0.0, blur_p=0.0)
NO_JITTER = replace(NOTHING, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, jitter_p=1.0)
CASES = {
    "everything": ALL,
    "brightness": replace(NO_JITTER, brightness=0.4),
    "contrast": replace(NO_JITTER, contrast=0.4),
    "saturation": replace(NO_JITTER, saturation=0.4),
    "hue": replace(NO_JITTER, hue=0.1),
    "grey": replace(NOTHING, grey_p=1.0),
    "blur": replace(NOTHING, blur_p=1.0),
    "solarise": replace(NOTHING, solarise_p=1.0),
    "normalise": NOTHING,
}
Form = Callable[[Tensor], Tensor]


def ours(spec: Photometric) -> Form:
    """Return our form: draws for each image, then the whole batch."""
    rng = np.random.default_rng(0)

    def go(crops: Tensor) -> Tensor:
        parameters = torch.from_numpy(np.stack([photometric.draw(rng, spec) for _ in range(len(crops))]))
        return augment(crops, parameters, IMAGENET_MEAN, IMAGENET_STD, crops.device)

    return go


def kornias(spec: Photometric, kornia: ModuleType) -> Form:
    """Return kornia's form: modules that work on the whole batch."""
    kinds = kornia.augmentation
    threshold = (spec.solarise_threshold - 0.5) / 255
    steps = [
        kinds.ColorJitter(spec.brightness, spec.contrast, spec.saturation, spec.hue, p=spec.jitter_p),
        kinds.RandomGrayscale(p=spec.grey_p),
        kinds.RandomGaussianBlur((KERNEL_PX, KERNEL_PX), spec.blur_sigma_px, p=spec.blur_p),
        kinds.RandomSolarize((threshold, threshold), (0.0, 0.0), p=spec.solarise_p),
    ]
    chances = (spec.jitter_p, spec.grey_p, spec.blur_p, spec.solarise_p)
    normalise = kinds.Normalize(torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD))
    chain = nn.Sequential(*(step for step, chance in zip(steps, chances, strict=True) if chance > 0), normalise)
    return lambda crops: chain(crops.float().div_(255))


def torchvisions(spec: Photometric, *, floating: bool) -> Form:
    """Return torchvision's form: image by image, on tensors of uint8 or float32."""
    threshold = (spec.solarise_threshold - 0.5) / 255 if floating else spec.solarise_threshold
    steps: list[Any] = [
        v2.RandomApply([v2.ColorJitter(spec.brightness, spec.contrast, spec.saturation, spec.hue)], p=spec.jitter_p),
        v2.RandomGrayscale(spec.grey_p),
        v2.RandomApply([v2.GaussianBlur(KERNEL_PX, spec.blur_sigma_px)], p=spec.blur_p),
        v2.RandomSolarize(threshold, spec.solarise_p),
    ]
    chances = (spec.jitter_p, spec.grey_p, spec.blur_p, spec.solarise_p)
    kept = [step for step, chance in zip(steps, chances, strict=True) if chance > 0]
    convert = v2.ToDtype(torch.float32, scale=True)
    kept = [convert, *kept] if floating else [*kept, convert]
    chain = v2.Compose([*kept, v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    return lambda crops: torch.stack([chain(crop) for crop in crops])


def forms(spec: Photometric) -> dict[str, Form]:
    """Return all forms that can be measured here by their names; say of kornia where it is missing."""
    found = {"ours": ours(spec)}
    try:
        import kornia
    except ImportError:
        print("Skipping kornia, which is not installed; run `pip install -e '.[bench]'`.", file=sys.stderr)
    else:
        found["kornia"] = kornias(spec, kornia)
    return found | {
        "torchvision v2, uint8": torchvisions(spec, floating=False),
        "torchvision v2, float32": torchvisions(spec, floating=True),
    }


def crops_of_photographs(count: int) -> Tensor:
    """Return uint8 [count, 3, 224, 224]: pieces of scikit-image's photographs."""
    from skimage import data

    sources = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    rng = np.random.default_rng(0)
    pieces = [piece_of(sources[number % len(sources)], (SIDE_PX, SIDE_PX), rng) for number in range(count)]
    return torch.from_numpy(np.stack(pieces)).permute(0, 3, 1, 2).contiguous()


def table(crops: Tensor, *, rounds: int) -> list[str]:
    """Measure and return the lines of a table."""
    lines = []
    for title, spec in CASES.items():
        named = {name: lambda form=form: form(crops) for name, form in forms(spec).items()}
        torch.manual_seed(0)
        seconds = take_turns(named, rounds=rounds)
        for name, took in seconds.items():
            cells = [title, name, f"{1e3 * median(took) / len(crops):.3f}", ratio(took, seconds["ours"])]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return lines


def main(arguments: Sequence[str]) -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.photometrics", description=__doc__)
    parser.add_argument("--images", type=int, default=32, help="number of images in the batch")
    parser.add_argument("--rounds", type=int, default=7, help="number of rounds of all forms")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed_photometrics.md")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    lines = ["| what | form | ms an image | times ours |", "|---|---|---:|---:|"]
    lines += table(crops_of_photographs(options.images), rounds=options.rounds)
    about = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip()
    command = " ".join(["python -m benchmarks.speed.photometrics", *arguments])
    peers = [name for name in ("kornia", "torchvision") if any(f"| {name}" in line for line in lines)]
    text = (
        f"# Colour and sharpness of a batch\n\n{about}\n\nRatios are medians of rounds, with the smallest and largest."
    )
    text += f" No GPU was at hand.\n\n{chr(10).join(lines)}\n\n{foot(command, *peers)}"
    options.out.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
