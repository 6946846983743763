"""Dense measures along a run are those of its network as it stands, change nothing of the run, and never end it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import dovetail
from dovetail.downstream.dense.online import OnlineDense
from dovetail.downstream.machine import Machine
from dovetail.downstream.start import source_of
from dovetail.networks.build import build_network
from dovetail.report.history import read_history
from dovetail.weights.exported import load
from tests.downstream.dense.scenes import mask_folder
from tests.downstream.probe.test_online import pretrained

KEYS = ["encoder/linear", "encoder/retrieval", "decoder/linear", "decoder/retrieval"]


def run_on(data: Path, out: Path, **options: Any) -> dovetail.Run:
    """Pre-train for four steps on the images of a set with masks, without them."""
    given = {"model": "timm/test_resnet+fpn(channels=16)", "method": "decon-ml-densecl", "image_size": 64}
    return pretrained(data, out, **(given | options))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mask_folder(tmp_path_factory.mktemp("labelled"), train=6, val=3)


@pytest.fixture(scope="module")
def measured(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "measured"
    run_on(data, out, dense_data=data, dense_readings=2, report_every_minutes=5)
    return out


def test_the_last_reading_is_that_of_the_exported_network(data: Path, measured: Path) -> None:
    readings = {series.name: series for series in read_history(measured).group("dense")}
    assert list(readings) == KEYS
    assert all(series.steps == (2, 4) for series in readings.values())
    source = source_of(measured, None)
    network = source.network("all")
    online = OnlineDense(data, network, **source.pixels(), machine=Machine("cpu", "float32", 0))
    assert online(network) == {name: series.values[-1] for name, series in readings.items()}
    assert all(0 < series.values[-1] < 1 for series in readings.values())


def test_log_and_page_show_it(measured: Path) -> None:
    log = (measured / "train.log").read_text(encoding="utf-8")
    assert "mIoU of frozen maps before training: encoder/linear" in log
    assert "mIoU encoder/linear" in log
    page = (measured / "report.html").read_text(encoding="utf-8")
    assert "mIoU of frozen feature maps" in page
    assert "decoder/retrieval" in page


def test_the_run_is_the_same_without(data: Path, measured: Path, tmp_path: Path) -> None:
    run_on(data, tmp_path / "without")
    ours, theirs = load(measured).state_dict(), load(tmp_path / "without").state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    lines = (tmp_path / "without" / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["dense"] for line in lines] == [{}] * 4


def test_masks_are_read_once_so_that_a_run_does_not_depend_on_them(data: Path, tmp_path: Path) -> None:
    labelled = shutil.copytree(data, tmp_path / "labelled")
    source = source_of(None, "timm/test_resnet+fpn(channels=16)", image_size=64)
    network = source.network("random")
    online = OnlineDense(labelled, network, **source.pixels(), machine=Machine("cpu", "float32", 1))
    before = online(network)
    shutil.rmtree(labelled)
    assert online(network) == before


def test_what_cannot_be_measured_is_refused_before_the_first_step(data: Path, tmp_path: Path) -> None:
    with pytest.raises(dovetail.DovetailError, match="unknown"):
        run_on(data, tmp_path / "a", dense_data=data / "train" / "images")
    with pytest.raises(dovetail.DovetailError, match="leave out --dense-data"):
        run_on(data, tmp_path / "b", dense_data=data, strategy="fsdp", devices=2, batch_size=2)
    with pytest.raises(dovetail.DovetailError, match="dense_readings is 0"):
        run_on(data, tmp_path / "c", dense_data=data, dense_readings=0)
    assert not (tmp_path / "a" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda labels: np.where(labels > 0, 255, 0).astype(np.uint8), "contain only label 0 and 255"),
        (lambda labels: np.repeat((labels * 60)[..., None], 3, axis=2) + np.uint8([0, 1, 2]), "is in colour"),
    ],
)
def test_masks_without_class_numbers_name_no_option_of_another_command(
    change: Callable[[Any], Any], found: str, data: Path, tmp_path: Path
) -> None:
    labelled = shutil.copytree(data, tmp_path / "labelled")
    for path in labelled.rglob("masks/*.png"):
        Image.fromarray(change(np.array(Image.open(path)) % 255)).save(path)
    network = build_network("timm/test_resnet+fpn(channels=16)")
    given: dict[str, Any] = {"size": 64, "mean": (0.5,) * 3, "std": (0.5,) * 3, "machine": Machine("cpu", "float32", 0)}
    with pytest.raises(dovetail.DataError, match=found) as caught:
        OnlineDense(labelled, network, **given)
    assert "; save the masks of --dense-data with the classes as 0, 1, 2 and so on, or evaluate" in str(caught.value)
    assert "add --label-map" not in str(caught.value)
