"""Every recipe at paper scale in `recipes/paper`: it says what it is, its options are known, and two tiny steps run."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from dovetail.cli import run
from dovetail.networks.build import build_network
from dovetail.options import option_infos
from dovetail.recipe import Recipe
from dovetail.recipes.table import METHODS, build, options_of, parse
from dovetail.run.options import PretrainOptions
from tests.recipes.published import PUBLISHED
from tests.tiny import tiny_model, tiny_options

FILES = sorted((Path(__file__).parents[1] / "recipes" / "paper").glob("*.yaml"))
NAMES = [path.stem for path in FILES]
KEYS = {"method", "model", "preset", "epochs", "batch_size", "devices", "num_nodes", "image_size", "recipe"}


@functools.cache
def read(path: Path) -> dict[str, Any]:
    """Return a file's options, which no test changes."""
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def kind(path: Path) -> tuple[str, str, bool]:
    """Return what differs between runs: the shape of the model, the objective's family, DeCon or ADCLR around it."""
    content = read(path)
    method, model = content["method"], content["model"]
    shape = next((part for part in ("convnext", "+fcn", "vit") if part in model), "resnet")
    decon = method.startswith("decon")
    return shape, "" if decon else METHODS[parse(method).base].family, decon or method.startswith("adclr")


# One of each kind; the rest runs in the long tests.
SHOWN_RECIPES = sorted({kind(path): path for path in reversed(FILES)}.values())


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small images of noise."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for index in range(4):
        Image.fromarray(rng.integers(0, 255, (72, 80, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


def test_every_family_has_recipes() -> None:
    methods = {read(path)["method"] for path in FILES}
    assert {name for name, method in METHODS.items() if method.paper != "this project"} <= methods
    assert {f"decon-{level}{base}" for level in ("sl", "ml") for base in ("", "-densecl", "-pixpro")} <= methods
    assert {"adclr-dino", "adclr-ibot"} <= methods


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_the_header_says_what_is_expected_assumed_and_unknown(path: Path) -> None:
    comment = "\n".join(line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#"))
    content = read(path)
    for heading in ("Expected: ", "Assumes: ", "Unknown: "):
        assert comment.count(f"\n# {heading}") == 1
    assert re.search(rf"\b{content['epochs']} +epochs\.", comment.replace("\n#", " ")), "the title says how long"
    batch = content["batch_size"] * content["devices"] * content["num_nodes"]
    assert f"a global batch of {batch} " in comment.replace("\n#  ", "")
    assert f"dovetail pretrain --config recipes/paper/{path.name} --data " in comment


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_options_are_exactly_known_and_of_their_type(path: Path) -> None:
    content = read(path)
    needed = KEYS | {"masks"} if content["method"] == "detcon" else KEYS
    assert set(content) - {"drop_path", "freeze_encoder_epochs"} == needed
    assert set(content) <= option_infos(PretrainOptions).keys()
    assert content["preset"] == "paper"
    unknown = set(content["recipe"]) - set(options_of(content["method"]))
    assert not unknown
    for name, value in content["recipe"].items():
        default = options_of(content["method"])[name].default
        if isinstance(default, (bool, str)):
            assert type(value) is type(default), name


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_the_recipe_builds_at_full_size(path: Path) -> None:
    content = read(path)
    recipe = build(content["method"], taps_of(content["model"]), content["recipe"])
    assert isinstance(recipe, Recipe)
    assert recipe.name == content["method"]


_TAPS: dict[str, Any] = {}


def taps_of(model: str) -> Any:
    """Return a model's taps, built once for all files that name it, without memory for its weights and maps."""
    if model not in _TAPS:
        with torch.device("meta"):
            _TAPS[model] = build_network(model).taps
    return _TAPS[model]


def two_steps(path: Path, photographs: Path, out: Path) -> int:
    """Run two steps of a file on the command line, at toy size; return the exit code."""
    method = read(path)["method"]
    model = tiny_model(method)
    if METHODS[parse(method).base].family == "image" and "vit" in read(path)["model"]:
        model = "timm/test_vit+fpn(channels=16)"
    for part, tiny in {
        "convnext": "timm/test_convnext+fpn(channels=16, tap_norm=True)",
        "+fcn": "timm/test_resnet+fcn(channels=16)",
    }.items():
        model = tiny if part in read(path)["model"] else model
    small = [f"--recipe.{name}={value}" for name, value in tiny_options(method).items() if name != "image_size"]
    return run(
        [
            *("pretrain", "--config", str(path), "--data", str(photographs), "--out", str(out), "--model", model),
            *("--max-steps", "2", "--devices", "1", "--num-nodes", "1", "--batch-size", "4", "--image-size", "64"),
            *(
                "--accelerator",
                "cpu",
                "--precision",
                "32-true",
                "--workers",
                "0",
                "--report-every-minutes",
                "0",
                *small,
            ),
        ]
    )


def check_run(path: Path, photographs: Path, out: Path) -> None:
    """Run two steps and look at what they left."""
    assert two_steps(path, photographs, out) == 0
    saved = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))
    assert saved["method"] == read(path)["method"]
    assert saved["max_steps"] == 2
    assert 1 <= saved["epochs"] <= read(path)["epochs"]  # those that two steps take
    assert saved["freeze_encoder_epochs"] == read(path).get("freeze_encoder_epochs", 0)
    kept = {name: value for name, value in read(path)["recipe"].items() if name not in tiny_options(saved["method"])}
    resolved = {name: options_of(saved["method"])[name].default for name in kept} | saved["recipe"]
    for name, value in kept.items():
        assert listed(resolved[name]) == value, name
    assert (out / "exported" / "model.safetensors").is_file()


def listed(value: Any) -> Any:
    """Return a pair as YAML has it."""
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("path", SHOWN_RECIPES, ids=[path.stem for path in SHOWN_RECIPES])
def test_two_tiny_steps_run(path: Path, photographs: Path, tmp_path: Path) -> None:
    check_run(path, photographs, tmp_path / "run")


OTHERS = [path for path in FILES if path not in SHOWN_RECIPES]


@pytest.mark.slow
@pytest.mark.parametrize("path", OTHERS, ids=[path.stem for path in OTHERS])
def test_two_tiny_steps_of_all_others_run(path: Path, photographs: Path, tmp_path: Path) -> None:
    check_run(path, photographs, tmp_path / "run")


def settings_of(path: Path) -> dict[str, Any]:
    """Return every setting of a file's run: its options, and what follows from them."""
    content = read(path)
    recipe = build(content["method"], taps_of(content["model"]), content["recipe"])
    options = {name: tuple(value) if isinstance(value, list) else value for name, value in content["recipe"].items()}
    return options | {
        "epochs": content["epochs"],
        "batch": content["batch_size"] * content["devices"] * content["num_nodes"],
        "drop_path": content.get("drop_path", 0.0),
        "freeze": content.get("freeze_encoder_epochs", 0),
        "optimiser": recipe.optimiser.name,
        "resampling": recipe.views.views[0].interpolation,
    }


def test_the_table_of_published_values_has_every_file() -> None:
    assert set(PUBLISHED) == set(NAMES)


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_every_value_is_the_published_one(path: Path) -> None:
    published = PUBLISHED[path.stem]
    assert published.source
    assert published.chosen <= set(published.values)
    assert settings_of(path) == published.values
