"""Methods from outside: registered, given in Python, named by their path, brought by an installed package."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import dovetail
from dovetail.cli import parser_of
from dovetail.cli import run as run_command
from dovetail.errors import DovetailError
from dovetail.networks.build import build_network
from dovetail.recipe import EncoderInit, Recipe, Tap
from dovetail.recipes import presets, registry
from dovetail.recipes.image import METHODS as IMAGE
from dovetail.recipes.table import build, examples, options_of
from tests.data.photos import folder_of

MODEL = "timm/test_resnet+fpn"
QUICK: dict[str, Any] = {"batch_size": 4, "workers": 0, "max_steps": 2, "report_every_minutes": 0.0}


def mine(taps: Mapping[str, Tap], *, hidden: int = 24, dim: int = 8, image_size: int = 64, tilt: float = 0.5) -> Recipe:
    """Return a method.

    Args:
        taps: The model's taps.
        hidden: Width of the hidden layer.
        dim: Width of the embedding.
        image_size: Side of the views in pixels.
        tilt: How far it leans.
    """
    return IMAGE["simsiam"](taps, hidden=hidden, dim=dim, predictor_hidden=8, image_size=image_size)


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the working folder that marks its import."""
    (tmp_path / "brought.py").write_text(
        "from pathlib import Path\nPath('imported').touch()\nfrom tests.recipes.test_registry import mine\n"
    )
    monkeypatch.chdir(tmp_path)
    yield "brought:mine"
    sys.modules.pop("brought", None)


def test_a_registered_method_is_composed_like_any_other() -> None:
    dovetail.register_method("mine", mine, title="Mine", teacher=False)
    taps = build_network(MODEL, image_size=64).taps
    assert [term.tap for term in build("decon-sl-mine", taps).terms] == ["c5", "p2"]
    assert {"mine", "decon-sl-mine", "decon-ml-mine"} <= set(examples())
    assert build("mine+decon-sl-byol", taps, {"tilt": 1.0}).name == "mine+decon-sl-byol"
    assert "export" not in options_of("mine")
    with pytest.raises(DovetailError, match="option of mine 'tlit'; did you mean 'tilt'"):
        build("mine", taps, {"tlit": 1.0})
    with pytest.raises(DovetailError, match="did you mean 'mine'"):
        build("mne", taps)


@pytest.mark.parametrize("name", ["slotcon", "decon-x", "adclr-x", "a+b", "", "a b"])
def test_names_that_would_be_taken_for_others_are_refused(name: str) -> None:
    with pytest.raises(DovetailError, match=r"already has a method|not a valid name"):
        dovetail.register_method(name, mine)


def test_functions_whose_parameters_are_no_options_are_refused() -> None:
    with pytest.raises(DovetailError, match="'rest' of the method 'x' cannot be an option"):
        dovetail.register_method("x", lambda taps, **rest: mine(taps))
    with pytest.raises(DovetailError, match="'dim' of the method 'x' cannot be an option"):
        dovetail.register_method("x", lambda taps, dim: mine(taps, dim=dim))


def test_short_runs_keep_the_rate_of_a_method_from_outside() -> None:
    dovetail.register_method("mine", mine)
    assert presets.short_options("mine")["hidden"] == 256
    assert "base_lr" not in presets.options("short", "mine")
    assert "base_lr" not in presets.options("short", "decon-sl-mine")


@pytest.mark.parametrize("method", [mine, "recipe"], ids=["function", "recipe"])
def test_python_takes_functions_and_recipes(method: Any, tmp_path: Path) -> None:
    if method == "recipe":
        method = mine(build_network(MODEL, image_size=64).taps)
    options = QUICK | {"data": folder_of(tmp_path / "photos", 8), "model": MODEL, "out": tmp_path / "run"}
    run = dovetail.pretrain(method=method, **options)
    assert run.step == 2
    saved = (tmp_path / "run" / "config.yaml").read_text()
    assert "method: mine" in saved or "method: own:simsiam" in saved
    again = dovetail.pretrain(method=method, out=tmp_path / "run", resume=True)
    assert again.step == 2
    with pytest.raises(DovetailError, match=r"The run in .* has method"):
        dovetail.pretrain(method="byol", out=tmp_path / "run", resume=True)


def test_a_recipe_is_taken_as_it_is() -> None:
    from dataclasses import replace

    taps = build_network(MODEL, image_size=64).taps
    recipe = replace(mine(taps), encoder_init=EncoderInit(fan="out"))
    name = registry.name_of(recipe)
    assert replace(build(name, taps), name=recipe.name) == recipe
    assert registry.METHODS[name].image_size == 64
    with pytest.raises(DovetailError, match="own:simsiam has no option 'image_size'"):
        build(name, taps, {"image_size": 32})


def test_things_that_are_no_method_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DovetailError, match="The method int is a int; pass a name, a Recipe, or a function"):
        dovetail.pretrain(data=tmp_path, model=MODEL, method=3, out=tmp_path / "run")


def test_the_command_line_imports_what_is_typed(own_module: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["show", own_module, "--model", MODEL, "--recipe.dim", "6"]) == 0
    assert "dim=6" in capsys.readouterr().out
    assert "how far it leans" in parser_of("pretrain", ["--method", own_module]).format_help().lower()
    assert run_command(["show", "brought:min"]) == 2
    assert "'mine'" in capsys.readouterr().err
    assert run_command(["show", "brougt:mine"]) == 2
    assert "no module 'brougt'" in capsys.readouterr().err


def test_no_file_chooses_code_to_run(own_module: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("config.yaml").write_text(f"method: decon-sl-{own_module}\nmodel: {MODEL}\n")
    folder_of(Path("photos"), 8)
    assert run_command(["pretrain", "--config", "config.yaml", "--data", "photos", "--out", "run"]) == 2
    assert "is Python code, which a file cannot choose" in capsys.readouterr().err
    assert not Path("imported").exists()
    options = [f"--{name.replace('_', '-')}={value}" for name, value in QUICK.items()]
    assert (
        run_command(
            ["pretrain", "--method", own_module, "--model", MODEL, "--data", "photos", "--out", "run", *options]
        )
        == 0
    )
    registry.METHODS.pop(own_module)
    sys.modules.pop("brought")
    Path("imported").unlink()
    capsys.readouterr()
    assert run_command(["pretrain", "--resume", "--out", "run"]) == 2
    assert "pass it with --method" in capsys.readouterr().err
    assert not Path("imported").exists()
    assert run_command(["pretrain", "--resume", "--out", "run", "--method", own_module]) == 0


def test_installed_packages_bring_methods(
    own_module: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("brought-1.0.dist-info")
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: brought\nVersion: 1.0\n")
    points = f"[dovetail.methods]\nfrom-a-package = {own_module}\nold = {own_module}_of_last_year\n"
    (folder / "entry_points.txt").write_text(points)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    registry.installed.cache_clear()
    assert run_command(["show", "decon-sl-from-a-package", "--model", MODEL]) == 0
    assert run_command(["methods"]) == 0
    shown = capsys.readouterr().out
    assert "from-a-package" in shown
    broken = "The method 'old' of the installed package brought cannot be loaded from"
    assert broken in shown
    assert run_command(["show", "old"]) == 2
    assert broken in capsys.readouterr().err
    registry.installed.cache_clear()


def test_every_composed_name_follows_from_what_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["methods"]) == 0
    shown = " ".join(capsys.readouterr().out.partition("Combinations:")[2].split())
    listed = shown.partition("BASE is ")[2].partition(" or dino.")[0].split(", ")
    composed = [f"decon-{level}-{base}" for level in ("sl", "ml") for base in (*listed, "dino")]
    assert "decon-ml-slotcon" in composed
    named = {*registry.METHODS, *composed, "decon-sl", "decon-ml", "adclr-dino", "adclr-ibot"}
    assert {name for name in examples() if "+" not in name} <= named
    assert all(options_of(name) for name in (*composed, "dino+decon-sl-densecl", "adclr-ibot+decon-ml-simclr"))
