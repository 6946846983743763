"""Sweeps: what is varied, what is run again, and the table."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from benchmarks.sweep import Sweep, arm_name, check_options, main, parse_vary, spread, with_values
from PIL import Image

from benchmarks import sweep as module
from dovetail.errors import DovetailError
from dovetail.options import body


def test_values_are_read_as_in_yaml() -> None:
    words = ["recipe.alpha=0,0.25", "recipe.levels=finest,all", "lr=1.0e-3", "recipe.grid=null,7"]
    assert parse_vary(words) == {
        "recipe.alpha": [0, 0.25],
        "recipe.levels": ["finest", "all"],
        "lr": [1e-3],
        "recipe.grid": [None, 7],
    }


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["recipe.alpha"], "has no values to vary"),
        (["recipe.alpha="], "has no values to vary"),
        (["lr=1", "lr=2"], "varied twice"),
        (["lr=1,1"], "twice"),
    ],
)
def test_mistakes_in_what_is_varied(words: list[str], sentence: str) -> None:
    with pytest.raises(DovetailError, match=sentence):
        parse_vary(words)


def test_arms_are_all_combinations_with_folders_of_their_own() -> None:
    sweep = Sweep({}, {"recipe.alpha": [0, 0.5], "epochs": [1, 2, 3]}, 2, Path("out"))
    arms = sweep.arms()
    assert len(arms) == 6
    assert arms[0] == {"recipe.alpha": 0, "epochs": 1}
    folders = {sweep.folder(arm, seed) for arm in arms for seed in range(2)}
    assert len(folders) == 12
    assert sweep.folder(arms[1], 1) == Path("out/alpha=0,epochs=2/seed-1")
    assert Sweep({}, {}, 1, Path("out")).arms() == [{}]
    assert arm_name({}) == "base"


def test_values_go_to_the_recipe_or_the_run_and_the_base_stays() -> None:
    base = {"epochs": 3, "recipe": {"alpha": 0.1, "dim": 8}}
    assert with_values(base, {"recipe.alpha": 0.5, "lr": 1.0}) == {
        "epochs": 3,
        "lr": 1.0,
        "recipe": {"alpha": 0.5, "dim": 8},
    }
    assert base == {"epochs": 3, "recipe": {"alpha": 0.1, "dim": 8}}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"epohs": 3, "recipe": {}}, "did you mean 'epochs'"),
        ({"method": "simclr", "recipe": {"alpha": 0.5}}, "option of simclr"),
        ({"seed": 3, "recipe": {}}, "seed"),
    ],
)
def test_options_that_are_not_known_are_refused(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(DovetailError, match=sentence):
        check_options(options)


def test_a_group_other_than_the_recipe_is_refused() -> None:
    with pytest.raises(DovetailError, match=r"vary recipe\.OPTION"):
        with_values({}, {"model.width": 3})


def test_spread_is_the_standard_deviation_over_seeds() -> None:
    assert spread([0.5]) == "0.5"
    assert spread([1.0, 3.0]) == "2 ± 1.4"


@pytest.mark.parametrize("arguments", [["--seeds", "0"], ["--config", "nowhere.yaml"], ["--vary", "lr"]])
def test_mistakes_get_one_sentence(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "base.yaml"
    config.write_text("{}", encoding="utf-8")
    assert main(["--config", str(config), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert capsys.readouterr().err.startswith("sweep: ")


def write_config(folder: Path, **options: object) -> Path:
    """Write eight photographs of noise, probe sets of two classes, and a tiny config; return the config."""
    rng = np.random.default_rng(0)
    for place in ("photographs", "mosaics/labelled/images", "mosaics/test/images"):
        (folder / place).mkdir(parents=True)
        for index in range(8):
            Image.fromarray(rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(folder / place / f"{index}.png")
    for split in ("labelled", "test"):
        (folder / "mosaics" / split / "masks").mkdir()
        for index in range(8):
            mask = (rng.random((64, 64)) < 0.5).astype(np.uint8)
            Image.fromarray(mask).save(folder / "mosaics" / split / "masks" / f"{index}.png")
    content = {
        "data": str(folder / "photographs"),
        "model": "timm/test_resnet+fpn(channels=16)",
        "method": "decon-sl",
        "image_size": 64,
        "batch_size": 4,
        "max_steps": 2,
        "accelerator": "cpu",
        "workers": 0,
        "recipe": {"hidden": 16, "dim": 8, "prototypes": 4, "decoder_grid": 8, "base_lr": 0.5},
        **options,
    }
    path = folder / "base.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.mark.slow
def test_a_sweep_leaves_one_table_and_runs_nothing_twice(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "sweep"
    command = ["--config", str(write_config(tmp_path)), "--vary", "recipe.alpha=0,0.5", "--out", str(out)]
    probe = ["--probe", str(tmp_path / "mosaics"), "--classes", "2"]
    assert main([*command, *probe]) == 0
    first = (out / "sweep.md").read_text(encoding="utf-8")
    assert "| recipe.alpha | loss | encoder | decoder | encoder gain | decoder gain |" in first
    assert first in capsys.readouterr().out or "| 0.5 |" in first

    runs: list[object] = []
    pretrain = body(module.dovetail.pretrain)

    def counted(_: object) -> Callable[[Any], Any]:
        return lambda options: runs.append(options.seed) or pretrain(options)

    monkeypatch.setattr(module, "body", counted)
    assert main([*command, *probe, "--seeds", "2"]) == 0
    assert runs == [1, 1], "only the new seed's runs are started"
    content = json.loads((out / "sweep.json").read_text(encoding="utf-8"))
    assert [arm["values"] for arm in content["arms"]] == [{"recipe.alpha": 0}, {"recipe.alpha": 0.5}]
    assert all(len(arm[number]) == 2 for arm in content["arms"] for number in ("loss", "encoder", "decoder gain"))
    assert " ± " in (out / "sweep.md").read_text(encoding="utf-8")

    config = Path(command[1])
    config.write_text(config.read_text(encoding="utf-8").replace("max_steps: 2", "max_steps: 3"), encoding="utf-8")
    assert main([*command, *probe]) == 2
    assert "another config" in capsys.readouterr().err
