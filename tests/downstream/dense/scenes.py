"""Small labelled scenes for dense measures: coloured squares on a dark ground, on disk or as maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests.downstream.pictures import COLOURS


def scene(rng: np.random.Generator, *, side: int = 64, classes: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return an image [side, side, 3] and its labels: 0 is the ground, 1 and up are squares in the class's colour."""
    image = rng.normal(40, 12, (side, side, 3))
    labels = np.zeros((side, side), dtype=np.uint8)
    for _ in range(3):
        label, size = int(rng.integers(1, classes + 1)), side // 3
        top, left = rng.integers(0, side - size, 2)
        area = np.s_[top : top + size, left : left + size]
        image[area] = np.array(COLOURS[label - 1]) + rng.normal(0, 12, (size, size, 3))
        labels[area] = label
    return image.clip(0, 255).astype(np.uint8), labels


def mask_folder(root: Path, *, train: int = 12, val: int = 5, side: int = 64, ignored: bool = True) -> Path:
    """Write train/ and val/ with images/ and masks/; a rim of two pixels does not count. Return `root`."""
    rng = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for index in range(count):
            image, labels = scene(rng, side=side)
            if ignored:
                labels[:2] = 255
            Image.fromarray(image).save(root / split / "images" / f"{index:03d}.png")
            Image.fromarray(labels).save(root / split / "masks" / f"{index:03d}.png")
    return root


def clouds(count: int, *, classes: int = 3, channels: int = 6, grid: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return maps [count, channels, grid, grid] of one Gaussian cloud for each class, and masks at 4 pixels a cell."""
    generator = torch.Generator().manual_seed(seed)
    centres = 1.5 * torch.randn(classes, channels, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(classes, (count, grid // 2, grid // 2), generator=generator)
    labels = labels.repeat_interleave(2, 1).repeat_interleave(2, 2)
    maps = centres[labels] + torch.randn(count, grid, grid, channels, generator=generator)
    return maps.permute(0, 3, 1, 2).contiguous(), labels.repeat_interleave(4, 1).repeat_interleave(4, 2)


def moving_square(root: Path, *, frames: int = 8, side: int = 64, step: int = 4, name: str = "square") -> Path:
    """Write a sequence images/NAME and masks/NAME of a bright square that moves over a dark ground; return `root`."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / kind / name).mkdir(parents=True)
    for index in range(frames):
        image = rng.normal(40, 5, (side, side, 3))
        labels = np.zeros((side, side), dtype=np.uint8)
        area = np.s_[16:40, 4 + step * index : 28 + step * index]
        image[area], labels[area] = np.array(COLOURS[0]) + rng.normal(0, 5, (24, 24, 3)), 1
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / "images" / name / f"{index:05d}.png")
        Image.fromarray(labels).save(root / "masks" / name / f"{index:05d}.png")
    return root
