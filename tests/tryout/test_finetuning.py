"""Starts are fine-tuned alike, whatever their pre-trainings looked at."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dovetail.train.defaults import best_accelerator
from dovetail.tryout.finetuning import FineTuning
from dovetail.tryout.options import TryOptions
from dovetail.tryout.plan import Start
from tests.downstream.pictures import exported_run
from tests.downstream.test_finetune import mask_folder


@pytest.mark.skipif(best_accelerator() != "cpu", reason="with a GPU, crops have their usual size")
def test_all_starts_have_the_crops_of_the_largest_views(tmp_path: Path) -> None:
    runs = {
        name: exported_run(tmp_path / name, "timm/test_resnet+fpn(channels=16)", image_size=size)
        for name, size in [("base", 64), ("decon", 32)]
    }
    labels = mask_folder(tmp_path / "labels")
    asked = TryOptions.given({"data": "images", "labels": str(labels), "out": str(tmp_path / "try")})
    tuning = FineTuning(asked, runs, tmp_path / "tuned")
    assert tuning.crop_size == 64
    crops = set()
    for start in [Start("random weights", None, "random"), Start("decon, whole", "decon", "all")]:
        out = tmp_path / "tuned" / start.part
        tuning.call(start, out=out, seeds=1, steps=1)
        crops.add(json.loads((out / "results.json").read_text())["config"]["crop_size"])
    assert crops == {64}
