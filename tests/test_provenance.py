"""A file that is read decides nothing that only the command line may: no command, download, folder or erasure."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

import dovetail
from dovetail.cli import run as run_command
from dovetail.errors import DovetailError
from dovetail.options import body
from dovetail.run.options import PretrainOptions
from dovetail.run.pretrain import pretrain
from dovetail.run.restored import restore
from tests.data.tars import shards_of
from tests.loopback import Loopback, serving

RECIPE = {"hidden": 16, "dim": 8, "prototypes": 6, "decoder_grid": 8}
OPTIONS: dict[str, Any] = {
    "model": "timm/test_resnet+fpn(channels=16)",
    "image_size": 64,
    "batch_size": 4,
    "max_steps": 1,
    "workers": 0,
    "precision": "32-true",
    "accelerator": "cpu",
    "report_every_minutes": 0.0,
    "recipe": RECIPE,
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards_of(tmp_path_factory.mktemp("shards"), [4, 4])


@pytest.fixture(scope="module")
def finished(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests change copies of it."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    dovetail.pretrain(data=str(shards), out=out, **OPTIONS)
    return out


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOVETAIL_CACHE", str(tmp_path / "cache"))  # what another test fetched is fetched again


DOORS = ("config", "resume", "nested config")


@pytest.fixture(params=DOORS)
def attacked(request: pytest.FixtureRequest, finished: Path, tmp_path: Path) -> Any:
    """A function from hostile options to the exit code of a command that reads them from a file."""

    def attack(hostile: dict[str, Any], *typed: str) -> int:
        if request.param == "resume":
            copied = shutil.copytree(finished, tmp_path / "run", dirs_exist_ok=True)
            saved = yaml.safe_load((copied / "config.yaml").read_text())
            (copied / "config.yaml").write_text(yaml.safe_dump(saved | hostile))
            return run_command(["pretrain", "--out", str(copied), "--resume", *typed])
        config = tmp_path / "evil.yaml"
        config.write_text(yaml.safe_dump({**OPTIONS, **hostile}))
        if request.param == "nested config":
            (tmp_path / "outer.yaml").write_text(yaml.safe_dump({"config": str(config)}))
            config = tmp_path / "outer.yaml"
        return run_command(["pretrain", "--config", str(config), "--out", str(tmp_path / "new"), *typed])

    return attack


COMMANDS = [
    "pipe:touch MADE",
    "{pipe:touch MADE;true ,x}.tar",
    "{pipe:touch MADE;true,pipe:touch MADE;false}.tar",
    "p{ipe:touch MADE;true ,x}.tar",
    "{pi,x}pe:touch MADE;echo .tar",
    "{{pipe:touch MADE #,y},x}.tar",
    "file:///$(touch MADE)/{a,b}.tar",
    "{`touch MADE`,x}.tar",
]


# All of them are slow together: quick are those that have every command, form and door with each of the others.
ATTACKS = [
    pytest.param(door, command, form, marks=[pytest.mark.slow] * ((i + j + k) % 3 != 0))
    for i, door in enumerate(DOORS)
    for j, command in enumerate(COMMANDS)
    for k, form in enumerate(("text", "list", "list of lists"))
]


@pytest.mark.parametrize(("attacked", "command", "form"), ATTACKS, indirect=["attacked"])
def test_no_file_runs_a_command(
    attacked: Any, command: str, form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = tmp_path / "made"
    text = command.replace("MADE", str(made))
    data = {"text": text, "list": [text, text], "list of lists": [[text]]}[form]
    with pytest.MonkeyPatch.context() as patch:
        forbidden: list[Any] = []
        for name in ("run", "Popen", "check_output"):
            patch.setattr(subprocess, name, lambda *command, **_: forbidden.append(command))
        patch.setattr(os, "system", forbidden.append)
        assert attacked({"data": data}) == 2
    assert forbidden == []
    assert not made.exists()
    shown = capsys.readouterr().err
    assert shown.splitlines()[-1].startswith("dovetail: ")
    assert "Traceback" not in shown


def test_a_command_is_refused_from_everywhere(tmp_path: Path) -> None:
    for data in ("pipe:touch x", "pipe:cat {a,b}.tar"):
        with pytest.raises(DovetailError, match="is a command, which is no longer supported"):
            dovetail.pretrain(data=data, out=tmp_path / "run", **OPTIONS)


URLS = ["URL/photos-000.tar", "URL/photos-{000..001}.tar", "{URL/photos-000,x}.tar", "{x,URL/photos-000}.tar"]


@pytest.mark.parametrize("name", [*URLS, "hf:somebody/set", "s3://bucket/a.tar", "hf:URL/set.parquet#train"])
def test_no_file_starts_a_download(attacked: Any, name: str, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(shards) as server:
        assert attacked({"data": name.replace("URL", server.url)}) == 2
        assert server.requests == []
    shown = capsys.readouterr().err.splitlines()[-1]
    assert "may not start network connections; to allow it, add --data '" in shown


@pytest.mark.parametrize(
    "model", ["timm/hf-hub:somebody/model", "timm/local-dir:/tmp", "smp/unet/tu-hf-hub:somebody/model",
              "smp.Unet('resnet18', encoder_weights='imagenet')", "timm.create_model('test_resnet', pretrained=True)"],
)  # fmt: skip
def test_no_file_downloads_a_model(
    attacked: Any, model: str, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tried: list[Any] = []
    for name in ("connect", "getaddrinfo"):
        owner = "socket.socket" if name == "connect" else "socket"
        monkeypatch.setattr(f"{owner}.{name}", lambda *address, **_: tried.append(address))
    assert attacked({"data": str(shards), "model": model}) == 2
    assert tried == []
    assert "Traceback" not in capsys.readouterr().err


def test_no_file_asks_for_imagenet_weights(
    finished: Path, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("dovetail.networks.initialise.imagenet_weights", lambda network: asked.append(network) or {})
    config = tmp_path / "evil.yaml"
    config.write_text(yaml.safe_dump({**OPTIONS, "data": str(shards), "init": "imagenet"}))
    command = ["pretrain", "--config", str(config), "--out", str(tmp_path / "new")]
    assert run_command(command) == 2
    assert "to allow it, add --init 'imagenet'." in capsys.readouterr().err
    assert asked == []
    copied = shutil.copytree(finished, tmp_path / "run")
    saved = yaml.safe_load((copied / "config.yaml").read_text())
    (copied / "config.yaml").write_text(yaml.safe_dump(saved | {"init": "imagenet"}))
    assert run_command(["pretrain", "--out", str(copied), "--resume"]) == 0  # its checkpoint has the weights
    with pytest.raises(DovetailError, match="add --init 'imagenet'"):
        restore(copied).before  # noqa: B018 - the property raises
    shutil.rmtree(copied / "checkpoints")
    assert run_command(["pretrain", "--out", str(copied), "--resume"]) == 2
    assert asked == []
    assert run_command([*command, "--init", "imagenet"]) == 2  # it is asked for, and there are none here
    assert len(asked) == 1
    with pytest.raises(DovetailError, match="lack"):
        restore(rewritten(finished, tmp_path, init="imagenet"), init="imagenet")
    assert len(asked) == 2


def rewritten(finished: Path, tmp_path: Path, **options: Any) -> Path:
    """Return a copy of a run whose config says something else."""
    copied = shutil.copytree(finished, tmp_path / "rewritten")
    saved = yaml.safe_load((copied / "config.yaml").read_text())
    (copied / "config.yaml").write_text(yaml.safe_dump(saved | options))
    return copied


def test_no_file_sends_readings_elsewhere(
    attacked: Any, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("dovetail.run.pretrain.check_loggers", lambda names: None)  # installed or not
    monkeypatch.setattr("dovetail.run.pretrain.extra_loggers", lambda names, out: asked.append(names) or [])
    assert attacked({"data": str(shards), "loggers": ["wandb", "mlflow"]}) == 2
    assert "add --loggers wandb mlflow." in capsys.readouterr().err
    assert asked == []
    assert attacked({"data": str(shards), "loggers": ["mlflow"]}, "--loggers", "mlflow") == 0
    assert asked == [["mlflow"]]


@pytest.mark.parametrize("written", ["overwrite: true", "overwrite: yes", "resume: true", "overwrite: 1", "out: OUT"])
def test_no_file_erases_resumes_or_names_a_folder(
    written: str, finished: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = shutil.copytree(finished, tmp_path / "run")
    before = {path: path.read_bytes() for path in sorted(copied.rglob("*")) if path.is_file()}
    config = tmp_path / "evil.yaml"
    config.write_text(yaml.safe_dump({**OPTIONS, "data": str(shards)}) + written.replace("OUT", str(tmp_path / "new")))
    out = [] if written.startswith("out") else ["--out", str(copied)]
    for command in (["--config", str(config), *out], [*out, "--config", str(config)], [f"--config={config}", *out]):
        assert run_command(["pretrain", *command]) == 2
        shown = capsys.readouterr().err
        assert "remove it from the file and add --" in shown or "must be true or false" in shown
    assert {path: path.read_bytes() for path in sorted(copied.rglob("*")) if path.is_file()} == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("saved", [{"overwrite": True}, {"resume": False, "overwrite": True}, {"out": "elsewhere"}])
def test_a_runs_config_does_not_redirect_the_run(
    saved: dict[str, Any], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    copied = rewritten(finished, tmp_path, **saved)
    kept = (copied / "checkpoints" / "last.ckpt").read_bytes()
    assert run_command(["pretrain", "--out", str(copied), "--resume"]) == 0
    assert (copied / "checkpoints" / "last.ckpt").read_bytes() == kept
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rewritten"]


def test_the_command_line_counts_wherever_the_file_is_named(finished: Path, shards: Path, tmp_path: Path) -> None:
    """A file that names an output folder and a URL is harmless where both are typed, before or after it."""
    with serving(shards) as server:
        config = tmp_path / "config.yaml"
        named = {**OPTIONS, "data": f"{server.url}/photos-{{000..001}}.tar", "out": str(tmp_path / "evil")}
        config.write_text(yaml.safe_dump(named | {"recipe": {**RECIPE, "dim": 4}}))
        typed = ["--data", str(shards), "--recipe.dim", "8"]
        orders = {
            "first": [*typed, "--out", str(tmp_path / "first"), "--config", str(config)],
            "last": ["--config", str(config), *typed, "--out", str(tmp_path / "last")],
        }
        for name, arguments in orders.items():
            assert run_command(["pretrain", *arguments]) == 0
            saved = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
            assert saved["data"] == str(shards)
            assert saved["recipe"]["dim"] == 8
        assert server.requests == []
        assert not (tmp_path / "evil").exists()


def test_a_run_on_a_url_resumes_when_it_is_typed_again(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(shards) as server:
        out, data = str(tmp_path / "run"), f"{server.url}/photos-{{000..001}}.tar"
        config = tmp_path / "config.yaml"
        config.write_text(yaml.safe_dump(OPTIONS))
        assert run_command(["pretrain", "--config", str(config), "--data", data, "--out", out]) == 0
        count = requested(server)
        assert count >= 2
        resume = ["pretrain", "--out", out, "--resume"]
        assert run_command(resume) == 2
        assert f"to allow it, add --data '{data}'." in capsys.readouterr().err
        assert requested(server) == count
        assert run_command([*resume, "--data", data]) == 0
        again = ["pretrain", "--config", str(Path(out) / "config.yaml"), "--out", str(tmp_path / "again")]
        assert run_command(again) == 2
        assert run_command([*again, "--data", data]) == 0
        with pytest.raises(DovetailError, match="add --data"):
            dovetail.pretrain(out=out, resume=True)
        assert dovetail.pretrain(out=out, resume=True, data=data).finished


def requested(server: Loopback) -> int:
    """Return how many requests a server has had."""
    return len(server.requests)


def test_a_printed_config_is_no_attack(shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It names every option, `out`, `overwrite` and `resume` at their defaults."""
    with pytest.raises(SystemExit):
        run_command(["pretrain", "--print-config"])
    content = yaml.safe_load(capsys.readouterr().out)
    assert {"out", "overwrite", "resume"} <= content.keys()
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({**content, **OPTIONS, "data": str(shards)}))
    assert run_command(["pretrain", "--config", str(config), "--out", str(tmp_path / "run")]) == 0


def test_what_came_from_a_file_is_told_by_name(shards: Path, tmp_path: Path) -> None:
    """The function behind the command line takes the names, and looks at no text."""
    with serving(shards) as server:
        given = {**OPTIONS, "out": tmp_path / "run", "data": f"{server.url}/photos-{{000..001}}.tar"}
        with pytest.raises(DovetailError, match="comes from a config file"):
            body(pretrain)(PretrainOptions.given(given, from_file=["data"]))
        assert server.requests == []
        assert pretrain(**given).finished
