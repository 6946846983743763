"""What all tables of speed share: forms that take turns, ratios with their spread, photographs, the foot of a page."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

RESULTS = Path(__file__).resolve().parents[1] / "results"
SMALL = (480, 640)  # height and width in pixels
LARGE = (3000, 4000)


def take_turns(forms: Mapping[str, Callable[[], None]], *, rounds: int) -> dict[str, list[float]]:
    """Return each form's processor seconds in every round; forms take turns, so that other work falls on all of them.

    The first round, in which memory is taken and kernels are chosen, does not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for number in range(rounds + 1):
        for name, form in forms.items():
            start = time.process_time()
            form()
            if number:
                seconds[name].append(time.process_time() - start)
    return seconds


def in_process(
    module: str, *arguments: object, python: str = sys.executable, cores: int | None = None
) -> dict[str, Any]:
    """Return what a side prints last, as JSON, in a fresh process.

    Args:
        module: To run.
        arguments: Of its command line.
        python: The interpreter that has it.
        cores: Threads it may use; as many as it likes for None.

    Raises:
        SystemExit: With the end of what it said, where it fails.
    """
    command = [python, "-m", module, *map(str, arguments)]
    environment = os.environ | ({} if cores is None else {"OMP_NUM_THREADS": str(cores)})
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def ratio(slow: Sequence[float], fast: Sequence[float]) -> str:
    """Return the median ratio of two forms, round by round, and its smallest and largest."""
    ratios = [one / other for one, other in zip(slow, fast, strict=True)]
    return f"{median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def write_photographs(folder: Path, count: int, *, size: tuple[int, int]) -> list[Path]:
    """Write JPEGs of quality 90 with the content of real photographs: pieces of those in scikit-image's wheel."""
    from skimage import data

    folder.mkdir(parents=True, exist_ok=True)
    sources = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), data.retina()[200:1200, 200:1200]]
    rng, paths = np.random.default_rng(0), []
    for number in range(count):
        source = sources[number % len(sources)][..., :3]
        path = folder / f"{number:04}.jpg"
        Image.fromarray(piece_of(source, size, rng)).save(path, quality=90)
        paths.append(path)
    return paths


def piece_of(source: NDArray[np.uint8], size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Return [H, W, 3]: mirrored copies of a photograph side by side, so that detail stays as fine as it is in it."""
    height, width = size
    pair = np.concatenate([source, source[:, ::-1]], axis=1)
    tile = np.concatenate([pair, pair[::-1]], axis=0)
    times = (-(-height // tile.shape[0]) + 1, -(-width // tile.shape[1]) + 1, 1)
    top, left = rng.integers(0, tile.shape[0]), rng.integers(0, tile.shape[1])
    piece: NDArray[np.uint8] = np.tile(tile, times)[top : top + height, left : left + width]
    return np.ascontiguousarray(piece)


def foot(command: str, *packages: str) -> str:
    """Return the last lines of a page: command, machine, versions, date."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", *packages))
    return (
        f"Command: `{command}`  \n"
        f"Machine: {platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores{bfloat16()}  \n"
        "Seeds: 0, of images, networks and our draws  \n"
        f"Versions: Python {platform.python_version()}, {versions}  \n"
        f"Date: {date.today().isoformat()}\n"
    )


def bfloat16() -> str:
    """Return a word on the processor's bfloat16."""
    from dovetail.train.defaults import processor_has_bfloat16

    return " with bfloat16 arithmetic" if processor_has_bfloat16() else " without bfloat16 arithmetic"
