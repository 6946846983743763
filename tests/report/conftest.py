"""Two tiny runs with their pages, of a method with slots and of one with query patches, on files with hostile names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

import dovetail
from dovetail.downstream.table.results import Results, Row, over_seeds

HOSTILE = ("<script>alert(1)<b>.jpg", "\"quoted' & $math$.jpg", "plain.jpg")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of nine small images with structure."""
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for name in (*HOSTILE, *(f"{number}.png" for number in range(6))):
        coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
        coarse.resize((90, 70), Image.Resampling.BICUBIC).save(folder / name)
    return folder


def made_once(name: str, make: Callable[[Path], None], factory: pytest.TempPathFactory) -> Path:
    """Return a copy of a folder that the first of all processes of `-n 2` makes."""
    shared = factory.getbasetemp() if "PYTEST_XDIST_WORKER" not in os.environ else factory.getbasetemp().parent
    with FileLock(shared / f"{name}.lock"):
        if not (shared / name).exists():
            make(shared / f"{name}.tmp")
            (shared / f"{name}.tmp").rename(shared / name)
        return Path(shutil.copytree(shared / name, factory.mktemp(name) / "run"))


@pytest.fixture(scope="session")
def slot_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of DeCon over SlotCon on a ResNet with a pyramid."""
    return made_once("slots", lambda folder: pretrained(photos, folder), tmp_path_factory)


@pytest.fixture(scope="session")
def query_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of ADCLR over DINO on a ViT."""
    return made_once("queries", lambda folder: pretrained_on_queries(photos, folder), tmp_path_factory)


def pretrained_on_queries(photos: Path, folder: Path) -> None:
    """Pre-train with query patches for a step."""
    dovetail.pretrain(
        data=photos,
        model="timm/test_vit",
        method="adclr",
        out=folder,
        image_size=64,
        batch_size=4,
        max_steps=1,
        workers=0,
        precision="32-true",
        recipe={"hidden": 16, "bottleneck": 8, "prototypes": 16, "local_crops": 1, "local_size": 32, "queries": 3},
    )


@pytest.fixture(scope="session")
def map_run(photos: Path, query_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run with query patches again, with a map of embeddings in its page."""
    folder = tmp_path_factory.mktemp("map")
    shutil.copytree(query_run, folder / "run")
    dovetail.embed(run=folder / "run", data=photos, out=folder / "e.npy", page_map="tsne")
    return folder / "run"


@pytest.fixture(scope="session")
def comparison(slot_run: Path, query_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of both runs side by side, with scores."""
    folder = tmp_path_factory.mktemp("comparison")
    shares, starts = (0.1, 1.0), ("random", "encoder", "all")
    rows = tuple(
        Row(
            {"start": start, "fraction": share},
            {"mIoU": over_seeds([0.2 + share / 3 + 0.05 * number + 0.02 * seed for seed in range(3)])},
        )
        for number, start in enumerate(starts)
        for share in shares
    )
    Results("finetune segment", rows, {"seed": 0}, {"fingerprint": "a"}, "cpu").write(folder / "scores")
    dovetail.compare([str(slot_run), str(query_run), str(folder / "scores")], out=folder / "comparison.html")
    return folder / "comparison.html"


def pretrained(photos: Path, folder: Path, *, report_every_minutes: float = 5.0) -> None:
    """Pre-train for two steps."""
    dovetail.pretrain(
        data=photos,
        model="timm/test_resnet+fpn(channels=16)",
        method="decon-sl",
        out=folder,
        image_size=64,
        batch_size=8,
        max_steps=2,
        workers=0,
        log_every_steps=1,
        precision="32-true",
        report_every_minutes=report_every_minutes,
        recipe={"hidden": 16, "dim": 8, "prototypes": 6, "decoder_grid": 8},
    )
