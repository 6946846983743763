"""Small data for transfer: images on disk whose class can be seen, and a pre-training run's folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dovetail.networks.build import build_network
from dovetail.weights.exported import save_exported

COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200))


def noisy(colour: tuple[int, int, int], side: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """Return an image (width, height) of a colour with noise."""
    values = np.array(colour) + rng.normal(0, 25, (side[1], side[0], 3))
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def class_folder(root: Path, *, train: int = 8, val: int = 4, classes: int = 3) -> Path:
    """Write train/ and val/ with one folder for each colour, as ImageNet's; return `root`."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for label in range(classes):
            folder = root / split / f"n{label:08d}"
            folder.mkdir(parents=True)
            for index in range(count):
                size = (40 + 4 * (index % 2), 36)
                noisy(COLOURS[label], size, rng).save(folder / f"{split}_{index}.JPEG")
    return root


def exported_run(folder: Path, model: str = "timm/test_resnet", *, image_size: int = 32, seed: int = 0) -> Path:
    """Write what a pre-training run exports, with random weights; return the run's folder."""
    torch.manual_seed(seed)
    network = build_network(model, image_size=image_size)
    network.prune([*network.taps])  # a head that no tap reaches is not trained, as in a run
    save_exported(network, folder / "exported", method="test", extra={}, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    return folder
