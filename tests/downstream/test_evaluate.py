"""`evaluate` from end to end on a tiny set: numbers, files, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import dovetail
from dovetail.cli import VERBS
from dovetail.cli import run as run_command
from dovetail.downstream.probe.features import Features
from dovetail.networks.build import build_network
from dovetail.options import option_infos, options_class
from tests.downstream.pictures import class_folder, exported_run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return class_folder(tmp_path_factory.mktemp("imagenet"))


@pytest.mark.parametrize(
    "model", ["timm/test_resnet", "timm/test_vit", "timm/test_vit+fpn(channels=16)", "smp/unet/tu-test_resnet"]
)
def test_knn_tells_colours_apart(model: str, data: Path, tmp_path: Path) -> None:
    run = exported_run(tmp_path / "run", model, image_size=64 if "smp" in model else 32)
    results = dovetail.evaluate_knn(run=run, data=data, k=[1, 5, 500], accelerator="cpu", workers=0)
    assert results is not None
    assert [row.setting["k"] for row in results.rows] == [1, 5]
    assert results.rows[0].scores["top1"].mean > 0.8
    assert "500" in results.notes[0]
    content = json.loads((run / "evaluate-knn" / "results.json").read_text())
    assert content["rows"][0]["scores"]["top1"]["mean"] == results.rows[0].scores["top1"].mean
    assert content["data"]["train_images"] == 24
    assert content["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert len(list((run / "features").glob("*.safetensors"))) == 2


def test_linear_from_the_command_line(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = exported_run(tmp_path / "run")
    options = ["--run", str(run), "--data", str(data), "--workers", "2", "--epochs", "30", "--accelerator", "cpu"]
    assert run_command(["evaluate", "linear", *options, "--lr", "0.01", "0.3"]) == 0
    shown = capsys.readouterr().out
    assert "on a tenth of the training images" in shown
    content = json.loads((run / "evaluate-linear" / "results.json").read_text())
    assert content["rows"][0]["scores"]["top1"]["mean"] > 0.8
    assert content["config"]["lr"] == [0.01, 0.3]
    kept = {path: path.stat().st_mtime_ns for path in (run / "features").iterdir()}
    assert run_command(["evaluate", "linear", *options, "--lr", "0.3"]) == 0
    assert run_command(["evaluate", "knn", *options[:6], "--accelerator", "cpu", "--k", "1"]) == 0
    assert {path: path.stat().st_mtime_ns for path in (run / "features").iterdir()} == kept


def test_a_runs_features_are_computed_once_whatever_the_seed(data: Path, tmp_path: Path) -> None:
    run = exported_run(tmp_path / "run")
    for seed in (0, 1):
        dovetail.evaluate_knn(run=run, data=data, k=[1], seed=seed, accelerator="cpu", workers=0)
    assert len(list((run / "features").iterdir())) == 2  # of training and held-out images
    for seed in (0, 1):  # random weights are others
        dovetail.evaluate_knn(model="timm/test_resnet", data=data, out=tmp_path / "r", k=[1], seed=seed, workers=0)
    assert len(list((tmp_path / "r" / "features").iterdir())) == 4


def test_a_rate_at_which_the_probe_bursts_is_told(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = exported_run(tmp_path / "run")
    with pytest.raises(dovetail.DovetailError, match=r"lr is 1e\+38; it must be at most 1e\+06"):
        dovetail.evaluate_linear(run=run, data=data, lr=[1e38], epochs=5, accelerator="cpu", workers=0)
    monkeypatch.setattr("dovetail.options.Range.holds", lambda *_: True)
    with pytest.raises(dovetail.DovetailError, match=r"are NaN at the learning rate 1e\+38; use a lower --lr"):
        dovetail.evaluate_linear(run=run, data=data, lr=[1e38], epochs=5, accelerator="cpu", workers=0)


def test_the_class_token_of_the_last_block_is_timms_own() -> None:
    network = build_network("timm/test_vit", image_size=32).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        theirs = network.model.forward_features(pixels)[:, 0]  # type: ignore[operator]
        one, two = Features(network)(pixels), Features(network, blocks=2)(pixels)
    assert torch.allclose(one, theirs, atol=1e-6)
    assert torch.equal(two[:, two.shape[1] // 2 :], one)


def test_sizes_that_fit_no_patches_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(dovetail.DovetailError, match=r"patch size \(16 px\)"):
        dovetail.evaluate_knn(model="timm/test_vit", data=data, out=tmp_path, image_size=40, workers=0)


def test_a_class_without_training_images_is_told(tmp_path: Path) -> None:
    data = class_folder(tmp_path / "data", train=2, val=1)
    for path in (data / "train" / "n00000001").iterdir():
        path.unlink()
    results = dovetail.evaluate_knn(model="timm/test_resnet", data=data, out=tmp_path / "o", k=[1], workers=0)
    assert results is not None
    assert results.notes == ("There are no training images of class n00000001.",)


def test_check_lists_faults_and_stops(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--out", str(tmp_path / "o"), "--check"]
    assert run_command(["evaluate", "knn", "--data", str(data), *options]) == 0
    assert run_command(["evaluate", "knn", "--data", str(data), "--check"]) == 0  # which writes nothing
    broken = class_folder(tmp_path / "broken", train=1, val=1)
    (broken / "val" / "n00000002" / "val_0.JPEG").write_bytes(b"")
    assert run_command(["evaluate", "knn", "--data", str(broken), *options]) == 2
    shown = capsys.readouterr()
    assert "val_0.JPEG" in shown.out
    assert "1 of 6 images has a problem (listed above); correct or remove it" in shown.err
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["evaluate"], "expects another word: knn, linear, dense"),
        (["evaluate", "kn"], "did you mean 'knn'?"),
        (["evaluate", "knn", "--out", "x"], "--data is missing"),
        (["evaluate", "knn", "--data", "."], "--out is missing"),
        (["evaluate", "knn", "--data", ".", "--out", "y"], "--run is missing"),
        (["evaluate", "knn", "--data", ".", "--run", "nowhere"], "nowhere"),
        (["evaluate", "knn", "--k", "many"], "many"),
    ],
)
def test_mistakes_get_one_sentence(
    arguments: list[str],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(arguments) == 2
    shown = capsys.readouterr().err
    assert sentence in shown
    assert shown.count("\n") == 1


TRANSFER = [
    "evaluate knn",
    "evaluate linear",
    "evaluate dense",
    "finetune classify",
    "finetune segment",
    "finetune detect",
    "predict",
]


@pytest.mark.parametrize("name", TRANSFER)
def test_every_option_is_explained(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_command([*name.split(), "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    verb = VERBS[name]
    for option, info in option_infos(options_class(verb.load())).items():
        assert f"--{option.replace('_', '-')}" in text
        assert info.help.split()[0] in text


def test_groups_have_an_overview(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["finetune", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "finetune detect" in shown
    assert "pretrain " not in shown


@pytest.mark.parametrize(
    "command",
    [dovetail.evaluate_knn, dovetail.evaluate_linear, dovetail.evaluate_dense, dovetail.finetune_classify],
)
def test_images_are_opened_before_the_model(command: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "labelled").mkdir()
    (tmp_path / "labelled" / "notes.txt").write_text("no image")
    with pytest.raises(dovetail.DataError, match="labelled"):
        command(data=tmp_path / "labelled", model="smp/unet/no-such-encoder", out=tmp_path / "out")
