"""A small pre-training and its images."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dovetail
from dovetail.recipes.table import options_of

TINY = {"hidden": 16, "dim": 8, "prototypes": 6, "decoder_grid": 8}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of twelve small images with structure."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(12):
        coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
        coarse.resize((90, 70), Image.Resampling.BICUBIC).save(folder / f"{index:02d}.jpg")
    return folder


@pytest.fixture(scope="module")
def one_step(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one step; tests change copies of it."""
    return tiny_run(photos, tmp_path_factory.mktemp("one_step") / "run").folder


@pytest.fixture
def finished(one_step: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(one_step, tmp_path / "finished"))


@pytest.fixture
def pretrain(photos: Path) -> Callable[..., dovetail.Run]:
    """`dovetail.pretrain` with small defaults."""
    return partial(tiny_run, photos)


def tiny_run(photos: Path, out: Path | str | None = None, **options: Any) -> dovetail.Run:
    """Pre-train on the images for a step, or with other options than these."""
    given: dict[str, Any] = {
        "data": photos,
        "model": "timm/test_resnet+fpn(channels=16)",
        "method": "decon-sl",
        "image_size": 64,
        "batch_size": 4,
        "max_steps": 1,
        "workers": 0,
        "log_every_steps": 1,
        "precision": "32-true",
        "report_every_minutes": 0.0,  # drawing would take most of the time
    }
    given |= options if out is None else {"out": out} | options
    known = options_of(given["method"]) if given["method"] != "decon-xl" else TINY
    tiny = {name: value for name, value in TINY.items() if name in known}
    return dovetail.pretrain(**(given | {"recipe": tiny | options.get("recipe", {})}))
