"""Labelled images with 12 bands of 16 bits: every command reads all bands and keeps all levels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dovetail
from dovetail.data.reading.values import values_within
from dovetail.downstream.labels.images import central, open_splits, random_crop
from dovetail.downstream.labels.labelled import Labelled
from dovetail.downstream.labels.readers import open_segmentation
from dovetail.downstream.segment.augment import Augmentation, augmented
from dovetail.errors import DovetailError

BANDS, HIGH, SIDE = 12, 3000, 40
FAST: dict[str, Any] = {"accelerator": "cpu", "precision": "float32", "workers": 0}


def bands(seed: int) -> np.ndarray:
    """Return values [H, W, 12] that rise from left to right, by less than 1/255 of the range from pixel to pixel."""
    rise = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE, 1)
    return np.repeat(rise + np.uint16(seed), BANDS, axis=2)


def labelled_bands(root: Path, count: int = 5) -> Path:
    """Write images of 12 bands as .npy, and masks whose right half is class 1."""
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:, SIDE // 2 :] = 1
    for index in range(count):
        np.save(root / "images" / f"{index}.npy", bands(index))
        Image.fromarray(mask).save(root / "masks" / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 12 bands with values from 0 to 3000."""
    folder = tmp_path_factory.mktemp("bands")
    data = labelled_bands(folder / "data")
    options: dict[str, Any] = {"in_channels": BANDS, "value_range": [0, HIGH], "image_size": 32, "batch_size": 4}
    options |= {"mean": [0.2] * BANDS, "std": [0.2] * BANDS, "epochs": 1, "workers": 0, "accelerator": "cpu"}
    dovetail.pretrain(
        data=data / "images", model="smp/unet/tu-test_resnet", method="slotcon", out=folder / "run", **options
    )
    return folder / "run"


def test_all_bands_and_levels_are_read(tmp_path: Path) -> None:
    data = open_segmentation(labelled_bands(tmp_path)).with_channels(BANDS)
    with values_within((0, HIGH)):
        image = data.train[0].image
    assert image.shape == (BANDS, SIDE, SIDE)
    assert image.dtype == torch.float32
    assert len(torch.unique(image[7])) == SIDE * SIDE  # 8 bits would leave 137
    with pytest.raises(DovetailError, match="expected 3 channels, got 12"):
        _ = data.with_channels(3).train[0]


def test_augmentation_keeps_the_levels() -> None:
    item = Labelled(torch.rand(BANDS, SIDE, SIDE) * 255, torch.zeros(SIDE, SIDE, dtype=torch.int64))
    plan = Augmentation(crop_px=(24, 24), scale=(0.5, 2.0), within_px=(64, 32))
    image, _ = augmented(item, plan, 255, np.random.default_rng(0))
    assert image.dtype == torch.float32
    assert len(torch.unique(image)) > 256
    assert float(image.min()) >= 0
    assert float(image.max()) <= 255


def test_classes_keep_the_levels(tmp_path: Path) -> None:
    for split in ("train", "val"):
        for label in "ab":
            (tmp_path / split / label).mkdir(parents=True)
            np.save(tmp_path / split / label / "one.npy", bands(0))
    train, _, _ = open_splits(tmp_path)
    with values_within((0, HIGH)):
        crops = (
            central(train, 0, channels=BANDS, size=32),
            random_crop(train, 1, np.random.default_rng(0), channels=BANDS, size=32),
        )
    for crop in crops:
        assert crop.dtype == torch.float32
        assert len(torch.unique(crop[3])) > 256
        assert float(crop.min()) >= 0
        assert float(crop.max()) <= 255


def test_a_run_on_bands_is_measured_fine_tuned_and_predicts(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = labelled_bands(tmp_path / "data")
    fast = {**FAST, "steps": 2, "batch_size": 2, "crop_size": 32}
    assert dovetail.finetune_segment(run=run, data=data, check=True) is None
    assert "Found no faults in 5 images." in capsys.readouterr().out
    results = dovetail.finetune_segment(run=run, data=data, out=tmp_path / "tuned", **fast)
    assert results is not None
    assert 0 <= results.rows[0].scores["mIoU"].mean <= 1
    assert (tmp_path / "tuned" / "examples" / "00.png").is_file()
    dense = dovetail.evaluate_dense(
        run=run, data=data, out=tmp_path / "dense", at=["decoder"], protocols=["retrieval"], labels=[1.0], **FAST
    )
    assert dense is not None
    assert len(dense.rows) == 1
    dovetail.predict(run=tmp_path / "tuned", data=data / "images", out=tmp_path / "out", overlays=True, **FAST)
    with Image.open(tmp_path / "out" / "overlays" / "0.png") as overlay:
        assert overlay.size == (SIDE, SIDE)
        assert overlay.mode == "RGB"


def test_colour_distortion_of_bands_is_refused(run: Path, tmp_path: Path) -> None:
    data = labelled_bands(tmp_path / "data")
    with pytest.raises(DovetailError, match="--distort changes RGB colours, but the model takes 12 channels"):
        dovetail.finetune_segment(run=run, data=data, out=tmp_path / "out", distort="on", **FAST)
