"""How long `dovetail evaluate dense` takes on 300 labelled images.

    python -m benchmarks.speed.dense [--images 300] [--side 160] [--out benchmarks/results/speed_dense.md]

The images are made up: squares in 20 colours on a ground, four fifths of them to learn from and a fifth to measure on.
Weights are random, options are the defaults, and the encoder's deepest and the decoder's finest map are measured
together. Each line is a process of its own with two threads. Processor time is what both cores worked; wall-clock time
is longer on a machine with other work.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.speed.common import RESULTS, foot, in_process

MODELS = ("timm/tf_efficientnet_lite0+fpn(channels=128)", "timm/resnet50+fpn")
PROTOCOLS = ("linear", "retrieval", "clusters", "auto")
CLASSES = 21
TEST_SHARE = 0.2


def write_set(folder: Path, images: int, side: int) -> Path:
    """Write train/ and val/ with images/ and masks/ of `side` pixels; return the folder."""
    rng = np.random.default_rng(0)
    colours = rng.integers(60, 256, (CLASSES, 3))
    test = round(TEST_SHARE * images)
    for split, count in (("train", images - test), ("val", test)):
        for kind in ("images", "masks"):
            (folder / split / kind).mkdir(parents=True)
        for index in range(count):
            image, labels = scene(rng, colours, side)
            Image.fromarray(image).save(folder / split / "images" / f"{index:04}.jpg", quality=95)
            Image.fromarray(labels).save(folder / split / "masks" / f"{index:04}.png")
    return folder


def scene(
    rng: np.random.Generator, colours: NDArray[np.int64], side: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return an image [side, side, 3] with six squares, and its labels."""
    image, labels = rng.normal(40, 20, (side, side, 3)), np.zeros((side, side), dtype=np.uint8)
    for _ in range(6):
        label, size = int(rng.integers(1, CLASSES)), int(rng.integers(side // 8, side // 3))
        top, left = rng.integers(0, side - size, 2)
        image[top : top + size, left : left + size] = colours[label] + rng.normal(0, 20, (size, size, 3))
        labels[top : top + size, left : left + size] = label
    return image.clip(0, 255).astype(np.uint8), labels


def measured(model: str, protocol: str, folder: Path, side: int) -> dict[str, float]:
    """Return the seconds that one measurement takes in this process, by the wall and of the processor."""
    import torch

    import dovetail

    torch.set_num_threads(2)
    wall, busy = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        dovetail.evaluate_dense(
            model=model, data=folder, image_size=side, protocols=[protocol], accelerator="cpu", workers=1, out=out
        )
    return {"wall_s": time.perf_counter() - wall, "busy_s": time.process_time() - busy}


def main(arguments: Sequence[str]) -> int:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.dense", description=__doc__)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--side", type=int, default=160, help="side length of the images in pixels")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument(
        "--protocols", nargs="+", default=PROTOCOLS, help="protocols to measure; auto runs all three together"
    )
    parser.add_argument("--out", type=Path, default=RESULTS / "speed_dense.md")
    parser.add_argument("--measure", nargs=3, metavar=("MODEL", "PROTOCOL", "FOLDER"), help="print one line as JSON")
    options = parser.parse_args(arguments)
    if options.measure:
        model, protocol, folder = options.measure
        print(json.dumps(measured(model, protocol, Path(folder), options.side)))
        return 0
    lines = ["| model | protocols | wall-clock, s | processor, s |", "|---|---|---:|---:|"]
    with tempfile.TemporaryDirectory() as place:
        folder = write_set(Path(place), options.images, options.side)
        for model in options.models:
            for protocol in options.protocols:
                one = ("--side", options.side, "--measure", model, protocol, folder)
                facts = in_process("benchmarks.speed.dense", *one, cores=2)
                name = "all three" if protocol == "auto" else protocol
                lines.append(f"| `{model}` | {name} | {facts['wall_s']:.1f} | {facts['busy_s']:.1f} |")
                print(lines[-1], flush=True)
    about = (__doc__ or "").partition("\n\n")[2].partition("\n\n")[2].strip()
    command = " ".join(["python -m benchmarks.speed.dense", *arguments])
    title = f"# Dense measures of {options.images} images at {options.side} pixels"
    options.out.write_text("\n".join([title, "", about, "", *lines, "", foot(command)]), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
