"""What a run says of itself, and that one which does not begin leaves nothing behind."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import dovetail
from dovetail.cli import run as run_command
from dovetail.errors import DovetailError, Interrupted
from dovetail.networks.build import build_network
from dovetail.report.page import unreadable
from dovetail.run import timing
from dovetail.run.summary import example, next_steps, told_of_skipped
from tests.run.stopping import Stopping
from tests.train.runs import settings


def test_a_run_that_does_not_begin_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DovetailError, match="Found no folder"):
        dovetail.pretrain(data=tmp_path / "fotos", model="timm/test_resnet", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_log_of_a_run_begins_with_its_plan_and_ends_with_its_end(
    photos: Path, pretrain: Callable[..., dovetail.Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "LEAST_STEPS", 2)
    asked: dict[str, Any] = {"out": tmp_path, "method": "densecl", "max_steps": 6}
    with pytest.raises(Interrupted):
        pretrain(**asked, data=Stopping(photos, 22))
    log = (tmp_path / "train.log").read_text()
    title, why, length, time, *_, end = log.splitlines()
    assert "INFO densecl on timm/test_resnet+fpn" in title
    assert title.endswith(f", 12 images, into {tmp_path}")
    assert "INFO Preset short, because there is no GPU" in why
    assert "INFO This run: 6 steps of 4 images" in length
    assert "INFO Expected time: about" in time
    assert "INFO Stopped by Ctrl-C (SIGINT) after step " in end
    dovetail.pretrain(out=tmp_path, resume=True, data=Stopping(photos, None))
    again = (tmp_path / "train.log").read_text()
    assert again.startswith(log)
    assert "Resuming from step" in again
    assert again.rstrip().endswith(f"The run has finished. The weights of the student are in {tmp_path / 'exported'}.")


@pytest.mark.forks  # the images that are read ahead count
def test_a_resumed_run_says_where_and_how_long_and_what_changed(
    photos: Path, pretrain: Callable[..., dovetail.Run], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, Any] = {"out": tmp_path, "method": "densecl", "max_steps": 6, "log_every_steps": 1}
    with pytest.raises(Interrupted):
        pretrain(**asked, data=Stopping(photos, 22))
    assert "effective_rank" in (tmp_path / "metrics.jsonl").read_text()  # lines with a speed
    capfd.readouterr()
    dovetail.pretrain(out=tmp_path, resume=True, data=Stopping(photos, None), log_every_steps=2)
    out, err = capfd.readouterr()
    assert f"Settings: as before, in {tmp_path / 'config.yaml'}, except log_every_steps 2 (before: 1)\n" in out
    assert "encoder_batch_norm" not in out
    assert re.search(r"Resuming from step \d of 6; at [\d.]+ img/s as before, the .* about \d+ s\.", err)


def test_recipe_options_are_listed_by_their_origin(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small: dict[str, Any] = {"image_size": 32, "batch_size": 4, "max_steps": 2, "workers": 0}
    given: dict[str, Any] = {"method": "simclr", "recipe": {"hidden": 8}, "report_every_minutes": 0.0}
    dovetail.pretrain(data=photos, model="timm/test_resnet", out=tmp_path, **given, **small)
    shown = capsys.readouterr().out.partition("recipe options    ")[2].splitlines()
    listed = {line.partition("(")[2]: line.partition(" (")[0].strip().split(", ") for line in shown[:4]}
    assert listed["as specified)"] == ["image_size=32", "hidden=8"]
    assert "dim=128" in listed["preset short)"]
    assert listed["a quarter of the run)"] == ["warmup_epochs=0.167"]  # 2 of 3 steps per epoch
    del small["image_size"]
    dovetail.pretrain(data=photos, model="timm/test_resnet", out=tmp_path / "chosen", **given, **small)
    assert "image_size=128 (chosen for this run)" in capsys.readouterr().out


def test_the_log_has_the_reasons_for_what_was_chosen(photos: Path, tmp_path: Path) -> None:
    small: dict[str, Any] = {"image_size": 32, "batch_size": 4, "max_steps": 1, "workers": 0}
    dovetail.pretrain(data=photos, model="timm/test_resnet", report_every_minutes=0.0, out=tmp_path, **small)
    assert (
        "INFO Method densecl, because the model is an encoder without a decoder" in (tmp_path / "train.log").read_text()
    )


def test_unreadable_images_are_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    file = tmp_path / "skipped.jsonl"
    assert told_of_skipped(file) == ""
    paths = ("photos/a.jpg", str(tmp_path / "photos" / "a.jpg"))  # the second one is of the resumed run
    file.write_text("".join(json.dumps({"path": path, "reason": "torn"}) + "\n" for path in paths))
    assert told_of_skipped(file) == f"\n1 image could not be read and was skipped; see {file}."
    assert unreadable(tmp_path, "finished") == "1 unreadable (see skipped.jsonl)"


def test_show_prints_what_a_run_used(
    pretrain: Callable[..., dovetail.Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pretrain(out=tmp_path / "run", method="densecl", max_steps=1)
    capsys.readouterr()
    assert run_command(["show", str(tmp_path / "run")]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"densecl on timm/test_resnet+fpn(channels=16) in {tmp_path / 'run'}\n")
    assert (tmp_path / "run" / "recipe.txt").read_text().rstrip() in told
    options = yaml.safe_load(told.partition("config.yaml:\n")[2])
    assert options == yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert run_command(["show", str(tmp_path)]) == 2
    assert "contains no run (config.yaml is missing); specify a run folder or a method" in capsys.readouterr().err
    assert run_command(["show", str(tmp_path / "rum")]) == 2
    assert f"did you mean '{tmp_path / 'run'}'?" in capsys.readouterr().err
    assert run_command(["show", str(tmp_path / "run"), "--preset", "small"]) == 2
    assert "omit the other options" in capsys.readouterr().err


def test_a_method_is_shown_though_a_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "simclr").mkdir()
    assert run_command(["show", "simclr", "--model", "timm/test_resnet"]) == 0
    assert "simclr on timm/test_resnet" in capsys.readouterr().out


@pytest.mark.parametrize(("init", "starts"), [("imagenet", "imagenet all"), (None, "random all")])
def test_the_gain_is_measured_over_the_weights_that_the_run_started_from(
    init: str | None, starts: str, tmp_path: Path
) -> None:
    assert f"--start {starts}\n" in next_steps(tmp_path, init) + "\n"


@pytest.mark.parametrize(("name", "classes"), [("timm/test_resnet+fpn", False), ("smp/fpn/resnet18", True)])
def test_the_example_asks_for_classes_only_where_the_model_has_them(name: str, classes: bool, tmp_path: Path) -> None:
    shown = example(build_network(name), tmp_path)
    assert ("with your number of classes" in shown) == classes
    assert "load_into(model, " in shown


def test_a_frozen_encoder_is_written_as_its_option_is() -> None:
    assert "freeze_encoder_epochs  all\n" in settings(freeze_encoder_epochs=float("inf")).table()
