"""The mosaics are what they claim to be, and the whole demo runs in miniature."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from benchmarks.demo.mosaics import TEXTURES, MosaicPlan, band, mosaic, read_textures, write_mosaics
from benchmarks.demo.settings import BASE, CLASSES, DECON, FINETUNING, SCENES, TARGETS, DemoSettings
from benchmarks.demo.trial import pretrained
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


FAST = {"epochs": 1, "batch_size": 40, "image_size": 64}


def test_every_pretraining_starts_from_imagenet_weights_and_takes_as_many_steps() -> None:
    settings = DemoSettings()
    ways = [one.arguments() for one in (settings.base, settings.decon, settings.targets)]
    assert {one["init"] for one in ways} == {"imagenet"}
    same = ("model", "epochs", "batch_size", "image_size", "seed")
    assert len({tuple(one[name] for name in same) for one in ways}) == 1


def test_the_committed_scenes_are_small_whole_and_divided() -> None:
    manifest = json.loads((SCENES / "manifest.json").read_text())
    assert ("background", *manifest["classes"]) == CLASSES
    assert sum(path.stat().st_size for path in SCENES.rglob("*") if path.is_file()) < 4.5e6
    assert len(list((SCENES / "images" / "unlabelled").iterdir())) == manifest["scenes"]["unlabelled"]
    train, test = (set(map(str, manifest["used"][split]["assets"])) for split in ("train", "test"))
    assert train
    assert test
    assert not train & test
    assert (SCENES / "LICENCES.txt").is_file()


def test_ctrl_c_ends_the_demo_with_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.demo import __main__ as demo

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "demonstrate", stopped)
    monkeypatch.setattr("sys.argv", ["demo", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        demo.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == (
        f"The demo was stopped; the same command keeps the finished pre-trainings in {tmp_path}.\n"
    )


def test_an_output_folder_that_cannot_be_made_is_told_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.demo import __main__ as demo

    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr("sys.argv", ["demo", "--out", str(tmp_path / "file")])
    with pytest.raises(SystemExit) as ended:
        demo.main()
    assert str(ended.value.code).startswith("benchmarks.demo: ")
    assert str(tmp_path / "file") in str(ended.value.code)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_finished_pretraining_is_kept_only_with_the_same_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[dict[str, object]] = []

    def pretrain(*, out: Path, **options: object) -> None:
        runs.append(options)
        (out / "exported").mkdir(parents=True, exist_ok=True)
        (out / "exported" / "model.safetensors").touch()

    monkeypatch.setattr("dovetail.pretrain", pretrain)
    for how in (DECON, DECON, dataclasses.replace(DECON, preset="short")):
        assert pretrained(how, SCENES, tmp_path / "decon") == tmp_path / "decon"
    assert [(one["preset"], one["overwrite"]) for one in runs] == [("continue", False), ("short", True)]


@pytest.mark.slow
def test_the_whole_demo_in_miniature(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from benchmarks.demo.__main__ import demonstrate

    settings = DemoSettings(
        base=dataclasses.replace(BASE, **FAST),
        decon=dataclasses.replace(DECON, **FAST),
        targets=dataclasses.replace(TARGETS, **FAST),
        labels=(8, 24),
        probe_seeds=2,
        probe_steps=5,
        finetuning=dataclasses.replace(FINETUNING, steps=2, batch_size=2),
        seeds=(0, 1),
    )
    demonstrate(tmp_path / "demo", settings)
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    names = [row["row"] for row in results["rows"]]
    assert names == [
        "ImageNet, random decoder",
        "+ SlotCon, encoder",
        "+ DeCon, encoder and decoder",
        "+ encoder targets, decoder",
    ]
    for row in results["rows"]:
        assert len(row["finetuned"]) == 2
        assert len(row["frozen"]) == 4
        assert all(len(values) == 2 and all(0 <= value <= 100 for value in values) for values in row["frozen"].values())
    assert len({tuple(row["frozen"]["decoder, 24 labels"]) for row in results["rows"]}) == 4
    printed = capsys.readouterr().out
    for name in ("scores.png", "predictions.png", "features.png", "results.json", "targets"):
        assert (tmp_path / "demo" / name).exists()
        assert name in printed
    assert "2 seeds (fine-tuning)" in printed
