"""The demo's mosaics are what they claim to be, and the whole of it runs in miniature."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.demo.mosaics import TEXTURES, MosaicPlan, band, mosaic, read_textures, write_mosaics
from PIL import Image

PLAN = MosaicPlan()


def ramps() -> list[np.ndarray]:
    """Return photographs whose grey value tells the column, so that one can see where pixels came from."""
    return [np.tile(np.linspace(0, 255, 400, dtype=np.float32), (300, 1)) for _ in TEXTURES]


def test_the_wheel_holds_every_photograph_large_enough() -> None:
    photographs = read_textures()
    assert len(photographs) == len(TEXTURES) == len({texture.name for texture in TEXTURES})
    for photograph in photographs:
        assert min(photograph.shape) >= 96
        assert photograph.std() > 5


def test_a_mosaic_is_a_function_of_seed_split_and_index() -> None:
    photographs = read_textures()
    pixels, mask = mosaic(photographs, PLAN, "test", 3)
    again, _ = mosaic(photographs, PLAN, "test", 3)
    assert np.array_equal(pixels, again)
    others = [
        mosaic(photographs, PLAN, "test", 4),
        mosaic(photographs, PLAN, "labelled", 3),
        mosaic(photographs, MosaicPlan(seed=1), "test", 3),
    ]
    assert all(not np.array_equal(mask, other) for _, other in others)


def test_every_region_has_one_mean_and_one_deviation() -> None:
    photographs = read_textures()
    for index in range(4):
        pixels, mask = mosaic(photographs, PLAN, "unlabelled", index)
        assert 2 <= len(np.unique(mask)) <= PLAN.regions[1]
        for one in np.unique(mask):
            values = pixels[mask == one].astype(float)
            if len(values) > 200:
                assert abs(values.mean() - 128) < 12  # bright stars and the like are cut off at 255
                assert abs(values.std() - PLAN.deviation) < 16


def test_splits_see_parts_of_a_photograph_that_do_not_meet() -> None:
    photograph = ramps()[0]
    spans = {split: (band(photograph, split).min(), band(photograph, split).max()) for split in ("labelled", "test")}
    middle = band(photograph, "validation")
    assert spans["labelled"][1] < middle.min() < middle.max() < spans["test"][0]
    assert np.array_equal(band(photograph, "labelled"), band(photograph, "unlabelled"))


def test_masks_are_exact(tmp_path: Path) -> None:
    """Flat photographs of different spread: the pixels alone must give the mask back."""
    flat = [np.full((200, 400), 10.0 * number, dtype=np.float32) for number in range(len(TEXTURES))]
    for number, photograph in enumerate(flat):
        photograph[::2] += 40 * (number % 2)  # odd classes are striped, even ones flat
    pixels, mask = mosaic(flat, PLAN, "test", 0)
    assert np.array_equal(pixels == 128, mask % 2 == 0)
    folders = write_mosaics(tmp_path, PLAN, {"unlabelled": 2, "test": 2})
    with Image.open(folders["test"] / "masks" / "0001.png") as written:
        assert np.array_equal(np.asarray(written), mosaic(read_textures(), PLAN, "test", 1)[1])
    assert len(list(folders["unlabelled"].iterdir())) == 2


def test_probe_reads_every_map_and_beats_chance_where_features_tell_the_class() -> None:
    from benchmarks.demo import study
    from benchmarks.demo.trial import Arm

    from dovetail.transfer.labelled import InMemory, Labelled

    def striped(seed: int) -> InMemory:
        """Return mosaics of two classes, one black, one white."""
        items = []
        for shift in range(4):
            mask = torch.zeros(64, 64, dtype=torch.int64)
            mask[:, 8 * (shift + seed) + 8 :] = 1
            items.append(Labelled((mask * 255).to(torch.uint8).expand(3, -1, -1), mask))
        return InMemory(items)

    scores = study.probe(Arm("untrained").model(0), striped(0), striped(1))
    assert len(scores) == len(study.MAPS)
    assert max(scores) > 90


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_demo_in_miniature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.demo.__main__ import demonstrate
    from benchmarks.demo.settings import BASE, DECON, FINETUNING, DemoSettings

    settings = DemoSettings(
        unlabelled=8,
        test=6,
        labels=(2, 4),
        seeds=(0, 1),
        base=dataclasses.replace(BASE, epochs=1, batch_size=4),
        decon=dataclasses.replace(DECON, epochs=1, batch_size=4),
        finetuning=dataclasses.replace(FINETUNING, steps=2, batch_size=2),
    )
    before = torch.random.get_rng_state()
    demonstrate(tmp_path / "demo", settings)
    torch.random.set_rng_state(before)
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert [(row["arm"], row["labels"]) for row in results["test"]] == [
        (arm, labels)
        for labels in (2, 4)
        for arm in ("from scratch", "DenseCL, encoder", "DeCon, encoder only", "DeCon, encoder + decoder")
    ]
    assert all(len(row["miou"]) == 2 and all(0 <= score <= 1 for score in row["miou"]) for row in results["test"])
    scores = {(row["arm"], row["labels"]): row["miou"] for row in results["test"]}
    assert len({tuple(value) for value in scores.values()}) == 8  # every arm starts from something else
    printed = capsys.readouterr().out
    for name in ("scores.png", "predictions.png", "features.png", "results.json", "decon"):
        assert (tmp_path / "demo" / name).exists()
        assert name in printed
    assert "n = 2 fine-tuning seeds" in printed
