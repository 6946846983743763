"""Timing a few steps before a run: what it says, and that the run does not notice."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import dovetail
from dovetail.run import timing
from dovetail.run.folder import read_config


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(8):
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def test_a_run_ends_in_the_same_bits_with_and_without_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = []
    for least in (2, 100):
        monkeypatch.setattr(timing, "LEAST_STEPS", least)
        run = dovetail.pretrain(
            data=photos,
            model="timm/test_resnet+fpn(channels=16)",
            method="decon-sl-densecl",
            image_size=32,
            batch_size=4,
            max_steps=3,
            workers=0,
            recipe={"hidden": 8, "dim": 4, "queue": 16},
            report_every_minutes=0.0,
            out=tmp_path / str(least),
        )
        weights.append(load_file(run.folder / "exported" / "model.safetensors"))
        assert ("Expected time: about" in capsys.readouterr().out) is (least == 2)
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_budget_is_written_down_as_the_steps_that_ran(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = dovetail.pretrain(
        data=photos,
        model="timm/test_resnet+fpn(channels=16)",
        image_size=64,
        batch_size=8,
        workers=0,
        recipe={"hidden": 8, "dim": 4, "prototypes": 4},
        report_every_minutes=0.0,
        budget="1s",
        out=tmp_path / "run",
    )
    config = read_config(run.folder)
    _, shown, what = capsys.readouterr().out.partition("Timing 4 steps on views of 64 px, to fit the run into 1s …\n")
    assert shown
    assert re.match(r"The first step took \S+ s; timing 3 more takes up to \d+ (s|min)\.\n", what)
    assert config["method"] == "decon-sl"
    assert config["max_steps"] == run.step >= 1
    assert "budget" not in config
    assert json.loads((run.folder / "exported" / "model.json").read_text())["image_size"] == config["image_size"]


def test_a_long_run_says_what_a_shorter_one_is() -> None:
    assert timing.expected(0.8, 9600).startswith(
        "Expected time: about 2 h 8 min (9,600 steps of 0.8 s). For a shorter run"
    )
    assert timing.expected(0.8, 200) == "Expected time: about 3 min (200 steps of 0.8 s)."
    assert timing.expected(0.8, 200, again=True) == "Expected time: about 3 min (200 steps of 0.8 s, timed again)."
