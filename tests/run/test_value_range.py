"""Images with more than 8 bits: the value range of a run, specified or measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file

import dovetail
from dovetail.data.open import open_source
from dovetail.data.reading.values import values_within
from dovetail.downstream.machine import machine
from dovetail.report.embedding import embeddings_of


def test_twelve_bits_train_and_embed_as_the_eight_they_stand_for(
    photos: Path, pretrain: Callable[..., dovetail.Run], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in photos.iterdir():
        grey = np.asarray(Image.open(path).convert("L"))
        for name, values in (("eight", grey), ("twelve", grey.astype(np.uint16) * 16 + grey // 16)):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(values).save(tmp_path / name / f"{path.stem}.png")
    pretrain(data=tmp_path / "eight", out=tmp_path / "a", max_steps=1)
    pretrain(data=tmp_path / "twelve", out=tmp_path / "b", max_steps=1, value_range=[0, 4095])
    eight, twelve = (load_file(tmp_path / name / "exported" / "model.safetensors") for name in ("a", "b"))
    torch.testing.assert_close(twelve, eight, rtol=1e-2, atol=1e-2)  # views of 12 bits are not rounded to 8
    vectors = [
        np.load(
            dovetail.embed(run=tmp_path / name, data=tmp_path / kind, out=tmp_path / f"{kind}.npy", accelerator="cpu")
        )
        for name, kind in (("a", "eight"), ("b", "twelve"))
    ]
    assert np.allclose(*vectors, rtol=1e-2, atol=1e-2 * float(np.abs(vectors[0]).max()))
    assert json.loads((tmp_path / "b/exported/model.json").read_text())["extra"]["value_range"] == [0, 4095]
    assert "clipped" not in caplog.text


def test_a_measured_range_is_that_of_the_run(
    pretrain: Callable[..., dovetail.Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    for name in range(6):
        np.save(tmp_path / f"{name}.npy", rng.integers(500, 3001, (70, 80, 12), dtype=np.uint16))
    options: dict[str, Any] = {"data": tmp_path, "in_channels": 12, "max_steps": 1}
    out = tmp_path / "run"
    pretrain(**options, out=out)
    config = yaml.safe_load((out / "config.yaml").read_text())
    low, high = config["value_range"]
    assert 500 <= low <= 510
    assert 2990 <= high <= 3000
    assert f"Value range: {low:g} to {high:g}" in capsys.readouterr().out
    assert config["mean"] == pytest.approx([0.5] * 12, abs=0.02)
    info = json.loads((out / "exported/model.json").read_text())
    assert info["extra"]["value_range"] == [low, high]
    assert info["normalisation"]["mean"] == config["mean"]
    assert pretrain(**options, out=out, resume=True).finished
    assert pretrain(**options, out=out, resume=True, value_range=["percentile"]).finished
    assert yaml.safe_load((out / "config.yaml").read_text())["value_range"] == [low, high]
    near = [np.full((64, 64, 12), value, np.uint16) for value in (1000, 1001)]  # the same of 256 levels
    with values_within([low, high]):
        assert len({open_source(near).open(index, 12).decode(1).unique().item() for index in range(2)}) == 1
    where = machine("cpu", "32-true")
    vectors = embeddings_of(out, open_source(near), side_px=64, batch_size=2, where=where).vectors
    assert not np.array_equal(vectors[0], vectors[1])
    pretrain(**options, out=tmp_path / "asked", value_range="percentile")
    assert yaml.safe_load((tmp_path / "asked/config.yaml").read_text())["value_range"] == [low, high]
    with pytest.raises(dovetail.DovetailError, match="none of the first images has more than 8 bits"):
        pretrain(out=tmp_path / "no", value_range=["percentile"])
