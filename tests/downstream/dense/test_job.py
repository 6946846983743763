"""`evaluate dense` from end to end on tiny sets: numbers, files, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import dovetail
from dovetail.cli import run as run_command
from dovetail.downstream.dense.job import notes_on
from dovetail.downstream.dense.options import DenseOptions
from dovetail.downstream.dense.scores import DenseScore
from dovetail.downstream.table.results import one_value
from tests.downstream.dense.scenes import mask_folder, moving_square
from tests.downstream.pictures import exported_run

FAST = {"accelerator": "cpu", "precision": "float32", "workers": 0, "image_size": 64}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mask_folder(tmp_path_factory.mktemp("labelled"))


def test_a_run_is_measured_by_all_protocols(data: Path, tmp_path: Path) -> None:
    run = exported_run(tmp_path / "run", "smp/fpn/resnet18", image_size=64)
    results = dovetail.evaluate_dense(
        run=run, data=data, at=["auto", "c2+c3"], labels=[3, 1.0], steps=60, clusters=[0, 24, 9999], **FAST
    )
    assert results is not None
    settings = [dict(row.setting) for row in results.rows]
    assert {one["at"] for one in settings} == {"encoder", "decoder", "c2+c3"}
    assert "encoder is c5, decoder is p2." in results.notes[0]
    assert len(settings) == 3 * (2 + 2 + 2) - 1  # c5 has too few cells for 24 clusters
    assert [note for note in results.notes if "9999" in note]
    fine = {one.setting["protocol"]: one.scores["mIoU"].mean for one in results.rows if one.setting["at"] == "c2+c3"}
    assert min(fine["linear"], fine["retrieval"]) > 0.7  # colours are told apart by random filters
    content = json.loads((run / "evaluate-dense" / "results.json").read_text())
    assert content["config"]["labels"] == [3, 1.0]
    assert content["data"]["classes"] == 4
    assert content["data"]["test_images"] == 5
    assert 0.25 < 4 * content["details"]["commonest_class_miou"] < 1  # a share of the pixels, over four classes
    linear = content["details"]["scores"][0]
    assert set(linear["iou"]) == {"0", "1", "2", "3"}
    assert set(linear["chosen"][0]) == {"lr", "weight_decay", "at_end"}
    assert all(row["scores"]["mIoU"]["low"] is row["scores"]["mIoU"]["over"] is None for row in content["rows"])
    assert "There is no interval, because the scores of 5 test images do not tell" in " ".join(content["notes"])
    rows = dovetail.compare([str(run)], out=tmp_path / "page.html")["evaluate dense"]
    assert len(rows) == len(settings)
    assert "labels 12" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_ten_test_images_have_an_interval(tmp_path: Path) -> None:
    given: dict[str, Any] = {"model": "timm/test_resnet", "protocols": ["retrieval"], "out": tmp_path / "o"}
    results = dovetail.evaluate_dense(data=mask_folder(tmp_path / "labelled", val=10), **given, **FAST)
    assert results is not None
    score = results.rows[0].scores["mIoU"]
    assert score.over == "images"
    assert score.low is not None
    assert score.high is not None
    assert score.low < score.mean < score.high
    assert "no interval" not in " ".join(results.notes)


def test_the_same_from_the_command_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [
        "--model",
        "timm/test_resnet+fpn(channels=16)",
        "--data",
        str(data),
        "--image-size",
        "64",
        "--workers",
        "2",
    ]
    options += ["--protocols", "linear", "retrieval", "--labels", "4", "0.5", "--at", "p2", "--seeds", "2"]
    options += ["--accelerator", "cpu", "--precision", "float32", "--steps", "40", "--out", str(tmp_path / "out")]
    assert run_command(["evaluate", "dense", *options]) == 0
    assert "evaluate dense (per cent)" in capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["setting"]["labels"] for row in content["rows"]] == [4, 6, 4, 6]
    assert all(len(row["scores"]["mIoU"]["values"]) == 2 for row in content["rows"])
    assert run_command(["evaluate", "dense", "--data", str(data), "--check"]) == 0
    assert "Found no faults" in capsys.readouterr().out


def in_colour(source: Path, target: Path) -> Path:
    """Copy labelled images or sequences; a class c of the masks becomes the colour (c, 255, 0)."""
    shutil.copytree(source, target)
    for path in target.rglob("masks/**/*.png"):
        labels = np.array(Image.open(path))
        colours = np.stack([labels, np.full_like(labels, 255), np.zeros_like(labels)], axis=2)
        Image.fromarray(colours).save(path)
    return target


@pytest.mark.parametrize("kind", ["images", "sequences"])
def test_colours_of_masks_are_mapped_to_classes(
    kind: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "sequences":
        data = moving_square(tmp_path / "grey")
    given: dict[str, Any] = {"model": "timm/test_resnet", "protocols": ["auto"], "steps": 10, "out": tmp_path / "o"}
    coloured = in_colour(data, tmp_path / "colour")
    with pytest.raises(dovetail.DovetailError, match=r"is in colour \(RGB\).* such as --label-map 0,0,0:0 255,0,0:1"):
        dovetail.evaluate_dense(data=coloured, **given, **FAST)
    pairs = [f"{label},255,0:{label}" for label in range(4)] + ["255,255,0:ignore"]
    assert run_command(["evaluate", "dense", "--data", str(coloured), "--label-map", *pairs, "--check"]) == 0
    assert "Found no faults" in capsys.readouterr().out
    results = [
        dovetail.evaluate_dense(data=folder, label_map=label_map, **given, **FAST)
        for folder, label_map in ((data, []), (coloured, pairs))
    ]
    assert results[0] is not None
    assert results[1] is not None
    assert results[0].rows == results[1].rows


def test_weights_without_a_run(data: Path, tmp_path: Path) -> None:
    """A model's name takes the weights of a file or of a run; others are drawn from the seed."""
    name = "timm/test_resnet+fpn(channels=16)"
    run = exported_run(tmp_path / "run", name, image_size=64, seed=5)
    file = run / "exported" / "model.safetensors"
    given = {"data": data, "protocols": ["retrieval"], "at": ["c3", "p2"], **FAST}

    def found(**options: object) -> list[float]:
        results = dovetail.evaluate_dense(out=tmp_path / "out", **given, **options)  # type: ignore[arg-type]
        assert results is not None
        return [row.scores["mIoU"].mean for row in results.rows]

    from_file = found(model=name, init=str(file))
    assert from_file == found(model=name, init=str(run)) == found(run=run)  # normalised as the run was
    assert from_file != found(model=name)
    assert found(model=name, seed=1) == found(model=name, seed=1) != found(model=name)
    with pytest.raises(dovetail.DovetailError, match="omit --init"):
        found(run=run, init=str(file))
    with pytest.raises(dovetail.DovetailError, match="nowhere"):
        found(model=name, init="nowhere.safetensors")


def test_an_untrained_decoder_on_imagenet_weights(data: Path, tmp_path: Path) -> None:
    model = "timm/tf_efficientnet_lite0+fpn(channels=16)"
    given = {"data": data, "protocols": ["linear"], "steps": 20, "out": tmp_path / "out", **FAST}
    found = [dovetail.evaluate_dense(model=model, init=init, **given) for init in ("imagenet", None)]  # type: ignore[arg-type]
    ours, random = (one.config for one in found if one is not None)
    assert ours["resolved_weights"] == "imagenet"
    assert random["resolved_weights"] == "random"
    encoder, decoder = ([row.scores["mIoU"].mean for row in one.rows] for one in found if one is not None)
    assert encoder[0] != decoder[0]


@pytest.mark.parametrize(
    ("chosen", "note"),
    [
        ([0.1, 3.0, 3.0], "is at the end of the sweep (3); add larger ones"),
        ([0.1, 0.1, 1.0], "is at the end of the sweep (0.1); add smaller ones"),
        ([0.1, 1.0, 3.0], None),
    ],
)
def test_most_seeds_at_one_end_of_the_rates_are_noted(chosen: list[float], note: str | None) -> None:
    each = tuple({"lr": rate, "weight_decay": 0.0, "at_end": rate != 1.0} for rate in chosen)
    score = DenseScore("p2", "linear", 4, 4, None, one_value(0.5), (), each)
    found = list(notes_on([score], 4, DenseOptions(protocols=("linear",), lr=(0.1, 1.0, 3.0))))
    assert [note in one for one in found] == [True] if note else found == []


def test_labels_are_carried_along_a_moving_square(tmp_path: Path) -> None:
    sequences = moving_square(tmp_path / "set")
    moving_square(sequences, name="slow", step=2)
    results = dovetail.evaluate_dense(
        model="timm/test_resnet+fpn(channels=16)", data=sequences, at=["c2", "encoder"], out=tmp_path / "out", **FAST
    )
    assert results is not None
    fine, deep = (dict(row.scores) for row in results.rows)
    assert fine["J&F"].mean > 0.8
    assert fine["J&F"].mean == pytest.approx((fine["J"].mean + fine["F"].mean) / 2)
    assert deep["J"].mean < fine["J"].mean  # 4 cells for 64 pixels
    assert results.data["frames"] == 16
    with pytest.raises(dovetail.DovetailError, match=r"does not support .*; use propagation"):
        dovetail.evaluate_dense(
            model="timm/test_resnet", data=sequences, protocols=["linear"], out=tmp_path / "o", **FAST
        )
    assert run_command(["evaluate", "dense", "--data", str(sequences), "--check"]) == 0
    (sequences / "images" / "slow" / "00003.png").write_bytes(b"no picture")
    assert run_command(["evaluate", "dense", "--data", str(sequences), "--check"]) == 2


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"protocols": ["propagation"]}, "does not support images with masks"),
        ({"protocols": ["linea"]}, "did you mean 'linear'"),
        ({"protocols": []}, "--protocols is empty"),
        ({"labels": [40]}, "labels is 40, but there are only 12"),
        ({"labels": [-1.0]}, "labels is -1"),
        ({"at": ["decoder"]}, "no decoder"),
        ({"image_size": 70}, "use --image-size 64"),
        ({"classes": 2}, "but there are 2 classes"),
        ({"memory": 0}, "memory is 0"),
    ],
)
def test_refusals(options: dict[str, object], sentence: str, data: Path, tmp_path: Path) -> None:
    given = {"model": "timm/test_resnet", "data": data, "out": tmp_path / "out", **FAST} | options
    with pytest.raises(dovetail.DovetailError, match=sentence):
        dovetail.evaluate_dense(**given)  # type: ignore[arg-type]
    assert not list((tmp_path / "out").glob("results.json"))
