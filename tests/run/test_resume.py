"""A run goes on as it began: resumed, requeued, moved, and written by an older version."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

import dovetail
from dovetail.cli import run as run_command
from dovetail.data import loader
from dovetail.run.restored import restore
from dovetail.views.plan import IMAGENET_MEAN, IMAGENET_STD
from tests.run.stopping import Stopping


@pytest.mark.forks
@pytest.mark.parametrize(
    ("method", "recipe"),
    [("decon-ml", {}), ("decon-sl", {"decoder_cells": 64, "border_cells": 1})],
    ids=["whole", "sampled"],
)
def test_a_resumed_run_ends_in_the_same_bits(
    photos: Path, pretrain: Callable[..., dovetail.Run], tmp_path: Path, method: str, recipe: dict[str, Any]
) -> None:
    asked: dict[str, Any] = {"max_steps": 4, "method": method, "recipe": recipe}
    pretrain(out=tmp_path / "whole", data=Stopping(photos, None), **asked)
    with pytest.raises(dovetail.DovetailError, match="with --resume to continue"):
        pretrain(out=tmp_path / "parts", data=Stopping(photos, 10), **asked)
    assert not (tmp_path / "parts" / "exported").exists()
    dovetail.pretrain(out=tmp_path / "parts", resume=True, data=Stopping(photos, None))
    whole, parts = (load_file(tmp_path / name / "exported" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


@pytest.mark.forks
def test_a_run_ends_in_the_same_bits_wherever_its_images_are_read(
    pretrain: Callable[..., dovetail.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_by: set[int] = set()
    dataset = loader.ViewDataset.__getitem__

    def get(self: loader.ViewDataset, item: Any) -> Any:
        read_by.add(os.getpid())
        return dataset(self, item)

    monkeypatch.setattr(loader.ViewDataset, "__getitem__", get)
    pretrain(out=tmp_path / "apart", max_steps=2)
    assert not read_by  # in this process
    monkeypatch.setattr(loader, "can_fork", lambda: False)
    pretrain(out=tmp_path / "here", max_steps=2)
    assert read_by == {os.getpid()}
    apart, here = (load_file(tmp_path / name / "exported" / "model.safetensors") for name in ("apart", "here"))
    assert all(torch.equal(value, here[name]) for name, value in apart.items())


def test_a_requeued_job_goes_on_with_the_command_it_had(
    pretrain: Callable[..., dovetail.Run], finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved = (finished / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run = pretrain(out=finished, overwrite=True)
    assert (run.folder, run.step, run.finished) == (finished, 1, True)
    assert (finished / "checkpoints" / "last.ckpt").stat().st_mtime_ns == saved


def test_a_resumed_run_needs_no_starting_weights(
    pretrain: Callable[..., dovetail.Run], finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = pretrain(out=tmp_path / "run", init=str(finished))
    shutil.rmtree(finished)
    assert dovetail.pretrain(out=tmp_path / "run", resume=True) == run
    assert "The run continues with its own weights" in caplog.text


def test_names_in_a_config_send_nothing_to_the_terminal(
    finished: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    config = finished / "config.yaml"
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | {"init": "\x00\x1b[2Jx"}))
    assert run_command(["pretrain", "--out", str(finished), "--resume", "--max-steps", "2"]) == 0
    shown = "".join(capsys.readouterr()) + caplog.text
    assert "\\x1b[2Jx" in shown
    assert "\x00" not in shown
    assert "\x1b" not in shown


def test_options_that_a_resumed_run_may_change_count_as_named(
    pretrain: Callable[..., dovetail.Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(out=tmp_path, skip_nonfinite_steps=5, max_steps=4, profile=1)
    assert run_command(["pretrain", "--out", str(tmp_path), "--resume", "--skip-nonfinite-steps", "0"]) == 0
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["skip_nonfinite_steps"] == 0


def test_resume_refuses_another_run(finished: Path) -> None:
    with pytest.raises(dovetail.DovetailError, match="method 'decon-sl', which cannot be changed to 'slotcon'"):
        dovetail.pretrain(out=finished, resume=True, method="slotcon")


def test_resume_takes_the_options_of_the_first_time_and_refuses_others(
    pretrain: Callable[..., dovetail.Run], tmp_path: Path
) -> None:
    """A run saves options that were derived beside those asked for; the same call goes on nevertheless."""
    asked = {
        "method": "dino",
        "model": "timm/test_vit+fpn(channels=16)",
        "recipe": {"local_scale": (0.1, 0.4), "local_size": 32},
    }
    first = pretrain(out=tmp_path, **asked)
    again = pretrain(out=tmp_path, resume=True, **asked)
    assert again.folder == first.folder
    with pytest.raises(dovetail.DovetailError, match=r"has recipe .*'local_scale': .*omit recipe"):
        dovetail.pretrain(out=tmp_path, resume=True, recipe={"local_scale": (0.2, 0.4)})


def test_resume_refuses_another_run_that_is_the_default(
    pretrain: Callable[..., dovetail.Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(out=tmp_path, method="densecl", seed=7, recipe={"hidden": 16, "dim": 8})
    again = ["pretrain", "--out", str(tmp_path), "--resume"]
    for option, value, had in (("method", "decon-sl", "'densecl'"), ("seed", "0", "7")):
        assert run_command([*again, f"--{option}", value]) == 2
        assert f"has {option} {had}, which cannot be changed" in capsys.readouterr().err
    assert run_command([*again, "--method", "densecl", "--seed", "7", "--recipe.hidden", "16", "--lr", "auto"]) == 0
    # As it was, though the file does not name it.
    assert run_command([*again, "--method", "densecl", "--recipe.temperature", "0.2"]) == 0
    assert run_command(again) == 0


def test_resume_knows_the_preset_of_the_first_time(pretrain: Callable[..., dovetail.Run], tmp_path: Path) -> None:
    for preset in ("small", "short"):
        first = pretrain(out=tmp_path / preset, preset=preset)
        assert pretrain(out=tmp_path / preset, preset=preset, resume=True).folder == first.folder
    pretrain(out=tmp_path / "paper", preset="paper")
    with pytest.raises(
        dovetail.DovetailError, match="preset 'paper', which cannot be changed to 'small' on resume; omit preset"
    ):
        dovetail.pretrain(out=tmp_path / "paper", preset="small", resume=True)


def test_a_run_from_before_the_normalisation_was_saved_keeps_imagenets(
    pretrain: Callable[..., dovetail.Run], tmp_path: Path
) -> None:
    model = "timm/tf_efficientnet_lite0+fpn(channels=16)"
    pretrain(model=model, init="imagenet", mean=IMAGENET_MEAN, std=IMAGENET_STD, out=tmp_path)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    del config["mean"], config["std"]
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    dovetail.pretrain(out=tmp_path, resume=True)
    info = json.loads((tmp_path / "exported" / "model.json").read_text())
    assert info["normalisation"] == {"mean": list(IMAGENET_MEAN), "std": list(IMAGENET_STD)}
    with pytest.raises(dovetail.DovetailError, match="has mean"):
        dovetail.pretrain(out=tmp_path, resume=True, mean=[0.5] * 3, std=[0.5] * 3)


@pytest.mark.parametrize("preset", ["small", "short"])
def test_a_convnext_is_trained_with_adamw_and_an_older_run_goes_on_with_lars(
    preset: str, pretrain: Callable[..., dovetail.Run], tmp_path: Path
) -> None:
    pretrain(model="timm/test_convnext+fpn(channels=16)", preset=preset, out=tmp_path / "new")
    config = yaml.safe_load((tmp_path / "new" / "config.yaml").read_text())
    assert config["recipe"]["optimiser"] == "adamw"
    assert config["lr"] == pytest.approx((2e-4 if preset == "small" else 4e-3) * 4 / 256)
    assert "adamw" in (tmp_path / "new" / "recipe.txt").read_text()
    old = tmp_path / "old"
    pretrain(model="timm/test_convnext+fpn(channels=16)", preset=preset, out=old, recipe={"optimiser": "published"})
    config = yaml.safe_load((old / "config.yaml").read_text())
    del config["recipe"]["optimiser"]
    (old / "config.yaml").write_text(yaml.safe_dump(config))
    assert dovetail.pretrain(out=old, resume=True).finished
    assert restore(old).recipe.optimiser.name == "lars"


def test_a_dino_run_from_before_official_positions_goes_on_as_it_began(
    pretrain: Callable[..., dovetail.Run], tmp_path: Path
) -> None:
    sizes = {"local_size": 32, "local_crops": 1, "bottleneck": 8}
    pretrain(model="timm/test_vit", method="dino", recipe=sizes, out=tmp_path)
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["recipe"].pop("reference_timm_positions") is False
    assert restore(tmp_path).recipe.official_positions
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert not restore(tmp_path).recipe.official_positions
    assert dovetail.pretrain(out=tmp_path, resume=True).finished
    assert yaml.safe_load((tmp_path / "config.yaml").read_text())["recipe"]["reference_timm_positions"] is True


def test_a_run_goes_on_where_its_images_moved_and_from_another_folder(
    photos: Path, pretrain: Callable[..., dovetail.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(photos, tmp_path / "here" / "photos")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    pretrain(data="photos", out="run")
    saved = yaml.safe_load(Path("run/config.yaml").read_text())
    assert saved["data"] == str(tmp_path / "here" / "photos")
    assert pretrain(data="photos", out="run", resume=True).finished
    monkeypatch.chdir(tmp_path / "there")
    again = ["pretrain", "--out", str(tmp_path / "here" / "run"), "--resume"]
    assert run_command(again) == 0
    (tmp_path / "here" / "photos").rename(tmp_path / "there" / "moved")
    with pytest.raises(dovetail.DovetailError, match=r"no longer at .*photos; specify their path with --data"):
        dovetail.pretrain(out=tmp_path / "here" / "run", resume=True)
    assert run_command([*again, "--data", "moved"]) == 0
    saved = yaml.safe_load((tmp_path / "here/run/config.yaml").read_text())
    assert saved["data"] == str(tmp_path / "there" / "moved")
    (tmp_path / "there" / "moved" / "03.jpg").rename(tmp_path / "there" / "moved" / "x.jpg")
    with pytest.raises(
        dovetail.DovetailError, match=r"not those of the run in .* \(their names or their order changed"
    ):
        dovetail.pretrain(out=tmp_path / "here" / "run", resume=True, data="moved")
    (tmp_path / "there" / "moved" / "x.jpg").unlink()
    with pytest.raises(dovetail.DovetailError, match="expected 12 images, got 11"):
        dovetail.pretrain(out=tmp_path / "here" / "run", resume=True, data="moved")


def test_a_run_on_several_folders_goes_on(photos: Path, pretrain: Callable[..., dovetail.Run], tmp_path: Path) -> None:
    for number, path in enumerate(sorted(photos.iterdir())):
        (tmp_path / f"{number % 2}").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / f"{number % 2}")
    pretrain(data=[tmp_path / "0", tmp_path / "1"], out=tmp_path / "run", max_steps=1)
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text())["data"] == [f"{tmp_path}/0", f"{tmp_path}/1"]
    again = ["pretrain", "--out", str(tmp_path / "run"), "--resume", "--max-steps", "2"]
    assert run_command(again) == 0
    (tmp_path / "1").rename(tmp_path / "moved")
    assert run_command(again) == 2
    assert run_command([*again, "--data", str(tmp_path / "0"), str(tmp_path / "moved")]) == 0
    with pytest.raises(dovetail.DovetailError, match="deletes"):
        pretrain(data=[tmp_path / "0", tmp_path / "run/checkpoints"], out=tmp_path / "run", overwrite=True)


def test_a_finished_run_is_lengthened_and_still_resumes_exactly(
    photos: Path, pretrain: Callable[..., dovetail.Run], tmp_path: Path
) -> None:
    def metrics(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]

    def weights(name: str) -> dict[str, torch.Tensor]:
        return load_file(tmp_path / name / "exported" / "model.safetensors")

    pretrain(out=tmp_path / "whole", max_steps=4)  # 3 steps an epoch
    short = weights("whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    run = dovetail.pretrain(out=tmp_path / "whole", resume=True, max_steps=8, save_every_minutes=0.0)
    assert (run.step, run.total_steps) == (8, 8)
    assert [line["step"] for line in metrics("whole")] == list(range(1, 9))
    assert not all(torch.equal(value, short[name]) for name, value in weights("whole").items())
    saved = (tmp_path / "whole" / "config.yaml").read_text()
    assert "# Lengthened from epochs 2, max_steps 4 to epochs 3, max_steps 8." in saved
    assert {name: yaml.safe_load(saved)[name] for name in ("epochs", "max_steps")} == {"epochs": 3, "max_steps": 8}
    # The rate follows the cosine of 8 steps from step 4 on, whatever it had fallen to.
    rates = [line["lr"] for line in metrics("whole")]
    assert rates[4] > rates[3]
    assert rates[4:] == sorted(rates[4:], reverse=True)
    warmup = yaml.safe_load(saved)["recipe"]["warmup_epochs"]  # of the shorter run, and over long ago
    pretrain(out=tmp_path / "long", max_steps=8, recipe={"warmup_epochs": warmup})
    long = {line["step"]: line["lr"] for line in metrics("long")}
    assert rates[4:] == [long[step] for step in range(5, 9)]
    told = (tmp_path / "whole" / "train.log").read_text()
    assert "had finished its 4 steps and is lengthened to 8" in told
    # Stopped amid what was added, and resumed without being told the length again.
    with pytest.raises(dovetail.Interrupted, match="of 8, with a checkpoint"):
        dovetail.pretrain(out=tmp_path / "parts", resume=True, max_steps=8, data=Stopping(photos, 10))
    stopped = metrics("parts")[-1]["step"]
    assert 4 < stopped < 8
    dovetail.pretrain(out=tmp_path / "parts", resume=True, data=Stopping(photos, None))
    assert [line["loss"] for line in metrics("parts")] == [line["loss"] for line in metrics("whole")]
    assert all(torch.equal(value, weights("parts")[name]) for name, value in weights("whole").items())


def test_a_length_that_a_run_cannot_take_is_refused(
    photos: Path, pretrain: Callable[..., dovetail.Run], tmp_path: Path
) -> None:
    pretrain(out=tmp_path / "run", epochs=2, max_steps=None)
    with pytest.raises(dovetail.OptionsError, match="has finished 6 steps, more than the 3 requested"):
        dovetail.pretrain(out=tmp_path / "run", resume=True, epochs=1)
    with pytest.raises(dovetail.OptionsError, match=r"has seed 0, .*; omit seed\."):
        dovetail.pretrain(out=tmp_path / "run", resume=True, epochs=4, seed=1)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["epochs"] == 2
    assert dovetail.pretrain(out=tmp_path / "run", resume=True, epochs=3).step == 9
    with pytest.raises(dovetail.Interrupted):
        pretrain(out=tmp_path / "stopped", data=Stopping(photos, 8), max_steps=6)
    with pytest.raises(dovetail.OptionsError, match=r"has max_steps 6, .* finish the run first, then lengthen it"):
        dovetail.pretrain(out=tmp_path / "stopped", resume=True, max_steps=9, data=Stopping(photos, None))


def test_a_finished_run_keeps_one_checkpoint_and_says_why(
    pretrain: Callable[..., dovetail.Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(out=tmp_path, max_steps=6, save_every_minutes=0.0, keep_every_epochs=1)
    kept = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {"config.yaml", "last.ckpt", "epoch-0001.ckpt", "epoch-0002.ckpt"}
    told = capsys.readouterr().out
    assert "last.ckpt (" in told
    assert "is kept to lengthen the run with --resume --max-steps" in told
    assert dovetail.pretrain(out=tmp_path, resume=True).step == 6
    assert capsys.readouterr().out == (
        "Listing the images …\nBuilding the model for 12 images …\n"
        f"The run in {tmp_path} has finished its 6 steps, so nothing is left to do; to lengthen it, add --max-steps "
        "with more than 6.\n"
    )
    dovetail.pretrain(out=tmp_path, resume=True, epochs=3)
    told = capsys.readouterr().out
    assert "with --resume --epochs" in told  # the option of its last length
