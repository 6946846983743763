"""The benchmark of what decoders learn: settings, lines, table, and a small measurement of each kind."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.decoder_content import COLUMNS, SETTINGS, Bench, Budget, Setting, measured, on_decoder, page
from benchmarks.scenes.compose import Scene
from benchmarks.scenes.write import SceneSet, made_once, write_scenes

from dovetail.downstream.dense import DenseOptions
from dovetail.networks.build import build_network
from dovetail.recipes.table import build
from tests.tiny import CNN

TINY = Budget(
    model=CNN,
    init=None,
    side_px=64,
    view_px=64,
    steps=2,
    counts={"unlabelled": 8, "train": 4, "val": 8},
    probes=DenseOptions(("linear", "retrieval"), labels=(4,), lr=(0.1,), weight_decay=(1e-4,), steps=3, memory=50),
)


def plain_scene(index: int, *, seed: int) -> Scene:
    """Return a scene of a red and a green square on grey noise."""
    rng = np.random.default_rng((seed, index))
    pixels = rng.integers(90, 140, (64, 64, 3)).astype(np.uint8)
    owners = np.zeros((64, 64), dtype=np.uint8)
    for number, left in ((1, 2), (2, 34)):
        top = int(rng.integers(0, 36))
        owners[top : top + 28, left : left + 28] = number
        pixels[top : top + 28, left : left + 28, number - 1] = 250
    return Scene(pixels, owners, [0, 1])


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SceneSet:
    def make(folder: Path) -> dict[str, Any]:
        makers = {name: (lambda index, seed=seed: plain_scene(index, seed=seed)) for seed, name in enumerate(COUNTS)}
        return write_scenes(folder, ("red", "green"), makers, COUNTS)

    return made_once(tmp_path_factory.mktemp("scenes") / "squares", make, {}, [], "")


COUNTS: dict[Any, int] = dict(TINY.counts)


def facts(value: float) -> dict[str, Any]:
    return {"scores": dict.fromkeys(COLUMNS, value), "seconds": 10.0}


@pytest.mark.parametrize(
    "setting", [one for one in SETTINGS if one.method not in (None, "encoder-targets")], ids=lambda one: one.name
)
def test_settings_are_recipes_and_differ_in_the_decoder_alone(setting: Setting) -> None:
    taps = build_network(CNN, image_size=64).taps
    assert setting.method is not None
    recipe = build(setting.method, taps, dict(setting.recipe))
    alone = build("densecl", taps)
    assert recipe.terms[0].objective == alone.terms[0].objective
    assert recipe.terms[0].tap == alone.terms[0].tap
    assert len(recipe.terms) == 1 + (setting.method != "densecl")


def test_lines_count_for_the_setting_and_budget_that_they_were_measured_with(scenes: SceneSet, tmp_path: Path) -> None:
    bench, setting = Bench(TINY, scenes, tmp_path / "lines.jsonl"), on_decoder("PixPro")
    bench.add(setting, 3, facts(0.5))
    with bench.lines.open("a") as file:
        file.write('{"mark": "cut o')
    bench.add(setting, 4, facts(0.7))
    assert set(bench.found(setting)) == {3, 4}
    assert bench.found(on_decoder("PixPro", "border")) == {}
    other = dataclasses.replace(bench, budget=dataclasses.replace(TINY, steps=3))
    assert other.found(setting) == {}
    text = page(bench)
    assert "1 settings were tried" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| PixPro")]
    assert "| 0.600 ± 0.141 |" in row  # a share
    assert "| 60.0 ± 14.1 |" in row  # mIoU
    assert row.endswith("| 2 | 10 |")


@pytest.mark.parametrize("setting", [SETTINGS[0], on_decoder("DenseCL", "own negatives", "border", "reflection")])
def test_a_setting_is_measured_whole(setting: Setting, scenes: SceneSet, tmp_path: Path) -> None:
    found = measured(Bench(TINY, scenes, tmp_path / "lines.jsonl"), setting, 0)
    assert set(found["scores"]) == set(COLUMNS)
    assert all(0 <= value <= 1 for value in found["scores"].values())
    assert found["scores"]["decoder within"] > 0
    assert found["scores"]["decoder linear"] > 0


def rows_of(page_text: str) -> dict[str, list[str]]:
    """Return the rows of the table of settings on a page, by setting."""
    lines = page_text[page_text.index("| setting |") :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {row[0]: row for row in cells}


def test_decons_page_says_what_was_measured() -> None:
    root = Path(__file__).parents[2]
    found = rows_of((root / "benchmarks" / "results" / "decoder_content.md").read_text(encoding="utf-8"))
    said = rows_of((root / "docs" / "methods" / "decon.md").read_text(encoding="utf-8"))
    assert said == {name: [*row[:5], row[7], row[9]] for name, row in found.items()}
