"""Curves of a trial: what is collected when, and that looking changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import dovetail
from dovetail.downstream import job
from dovetail.downstream.table import following
from dovetail.downstream.table.following import Following, thinned
from tests.downstream.pictures import exported_run
from tests.downstream.test_finetune import mask_folder


def test_a_score_is_asked_for_at_every_quarter() -> None:
    seen: list[int] = []
    curve = Following(20, lambda: seen.append(1) or 0.25)
    for step in range(20):
        curve.stepped(step, float(step))
    assert curve.curve().validation == ((5, 0.25), (10, 0.25), (15, 0.25), (20, 0.25))
    assert curve.curve().loss[0] == (1, 0.0)
    short = Following(8, lambda: 0.5)
    for step in range(8):
        short.stepped(step, 1.0)
    assert short.curve().validation == ()
    assert Following(20, None).due
    assert thinned([]) == ()


def test_many_losses_are_means_of_neighbours() -> None:
    points = thinned([float(step) for step in range(250)])
    assert len(points) == 84
    assert points[0] == (3, 1.0)
    assert points[-1] == (250, 249.0)


def test_looking_along_the_way_changes_no_weight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = exported_run(tmp_path / "run", "timm/test_resnet+fpn(channels=16)", image_size=64)
    asked: dict[str, Any] = {"run": run, "data": mask_folder(tmp_path / "masks", images=5), "accelerator": "cpu"}
    asked |= {"crop_size": 32, "steps": 4, "batch_size": 2, "workers": 0, "start": ["random"]}
    dovetail.finetune_segment(out=tmp_path / "plain", **asked)
    monkeypatch.setattr(following, "FEWEST_STEPS", 4)
    assert job.GLANCED > 1
    found = dovetail.finetune_segment(out=tmp_path / "followed", **asked)
    assert found is not None
    (curve,) = found.details["curves"]
    assert [step for step, _ in curve["validation"]] == [1, 2, 3, 4]
    assert [step for step, _ in curve["loss"]] == [1, 2, 3, 4]
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "followed"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())
    line = json.loads((tmp_path / "followed" / "trials.jsonl").read_text())
    assert len(line["per_image"]) == 1  # test image
    assert sum(line["per_image"]) == pytest.approx(0.0, abs=1e-6)
