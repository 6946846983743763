"""kNN along with a run is what `evaluate knn` measures of it, changes nothing of the run, and never ends it midway."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dovetail
from dovetail.report.history import read_history
from dovetail.weights.exported import load
from tests.downstream.pictures import class_folder


def pretrained(data: Path, out: Path, **options: Any) -> dovetail.Run:
    """Pre-train for four steps on the training images of `data`, without their labels."""
    given: dict[str, Any] = {
        "model": "timm/test_resnet",
        "method": "simclr",
        "image_size": 32,
        "batch_size": 4,
        "max_steps": 4,
        "lr": 0.1,
        "workers": 0,
        "log_every_steps": 1,
        "accelerator": "cpu",
        "precision": "32-true",
        "report_every_minutes": 0,
    }
    return dovetail.pretrain(data=data / "train", out=out, **(given | options))


def noise_folder(root: Path) -> Path:
    """Write images of noise with classes that mean nothing, so that some are told rightly and some wrongly."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 9), ("val", 11)):
        for label in range(3):
            folder = root / split / str(label)
            folder.mkdir(parents=True)
            for index in range(count):
                Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return root


def readings(out: Path) -> dict[int, float]:
    """Return the kNN of each line of the log that has it, by step."""
    series = read_history(out).number("knn")
    return dict(zip(series.steps, series.values, strict=True))


@pytest.mark.parametrize(("model", "method"), [("timm/test_resnet", "moco-v2"), ("timm/test_vit", "simclr")])
def test_the_last_reading_is_what_evaluation_gives(model: str, method: str, tmp_path: Path) -> None:
    data = noise_folder(tmp_path / "set")
    size = 160 if "vit" in model else 32
    pretrained(data, tmp_path / "run", model=model, method=method, knn_data=data, knn_readings=2, image_size=size)
    found = readings(tmp_path / "run")
    assert list(found) == [2, 4]
    after = dovetail.evaluate_knn(
        run=tmp_path / "run", data=data, k=[20], accelerator="cpu", precision="float32", workers=0
    )
    assert after is not None
    assert found[4] == after.rows[0].scores["top1"].mean
    assert 0 < found[4] < 1
    assert "before training" in (tmp_path / "run" / "train.log").read_text(encoding="utf-8")


def test_the_run_is_the_same_with_and_without(tmp_path: Path) -> None:
    data = class_folder(tmp_path / "set")
    for name, options in (("with", {"knn_data": data}), ("without", {})):
        pretrained(
            data, tmp_path / name, model="timm/test_resnet+fpn(channels=16)", method="decon-ml-densecl", **options
        )
    ours, theirs = (load(tmp_path / name).state_dict() for name in ("with", "without"))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert list(readings(tmp_path / "with")) == [1, 2, 3, 4]
    assert readings(tmp_path / "without") == {}


def test_images_that_are_gone_do_not_end_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, labelled = (class_folder(tmp_path / name) for name in ("set", "labelled"))
    write = dovetail.train.logs.RunLog.write

    def writes(self: Any, reading: Any, **more: Any) -> None:
        write(self, reading, **more)
        if reading.step == 2:
            shutil.rmtree(labelled)

    monkeypatch.setattr("dovetail.train.logs.RunLog.write", writes)
    assert pretrained(data, tmp_path / "run", knn_data=labelled).finished
    assert list(readings(tmp_path / "run")) == [1, 2]
    text = (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert text.count("kNN could not be computed") == 2


def test_what_cannot_be_measured_is_refused_before_the_first_step(tmp_path: Path) -> None:
    data = class_folder(tmp_path / "set")
    with pytest.raises(dovetail.DovetailError, match="no folder"):
        pretrained(data, tmp_path / "a", knn_data=data / "train")
    assert not (tmp_path / "a").exists()  # so that the command can be given again
    with pytest.raises(dovetail.DovetailError, match="leave out --knn-data"):
        pretrained(data, tmp_path / "b", knn_data=data, strategy="fsdp", devices=2, batch_size=2)
    with pytest.raises(dovetail.DovetailError, match="knn_readings is 0"):
        pretrained(data, tmp_path / "c", knn_data=data, knn_readings=0)
    next((data / "val").rglob("*.JPEG")).write_bytes(b"no picture")
    with pytest.raises(dovetail.DovetailError, match=r"\.JPEG"):
        pretrained(data, tmp_path / "d", knn_data=data)
    assert not (tmp_path / "d" / "metrics.jsonl").exists()


def test_a_resumed_run_goes_on_measuring(tmp_path: Path) -> None:
    data = class_folder(tmp_path / "set")
    pretrained(data, tmp_path / "whole", knn_data=data)
    pretrained(data, tmp_path / "run", knn_data=data)
    (tmp_path / "run" / "checkpoints" / "last.ckpt").unlink()
    pretrained(data, tmp_path / "run", knn_data=data, resume=True)
    assert readings(tmp_path / "run") == readings(tmp_path / "whole")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
