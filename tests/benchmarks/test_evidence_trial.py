"""Arms go on where they stopped, on a set as the real ones are: of coloured squares, and of bright and dark images."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.evidence import __main__ as command
from benchmarks.evidence import trial
from benchmarks.evidence.arms import Budget
from benchmarks.evidence.page import page
from benchmarks.evidence.questions import arm_named
from benchmarks.evidence.records import Records
from benchmarks.evidence.trial import Bench, run_arm
from benchmarks.scenes.compose import Scene
from benchmarks.scenes.write import SceneSet, made_once, write_scenes
from PIL import Image

from tests.benchmarks.test_evidence import BUDGET, SCRATCH, score

FLOOR = arm_named("colour histogram alone")
FLOOR_OF_OBJECTS = "mean box of each class"
DETECTS_WIDER = dataclasses.replace(BUDGET, detection={**BUDGET.detection, "head_width": 0.5}, detection_rates=(7.0,))


def plain_scene(index: int, *, seed: int) -> Scene:
    """Return a scene of two squares, red and green, on grey noise."""
    rng = np.random.default_rng((seed, index))
    pixels = rng.integers(90, 140, (64, 64, 3)).astype(np.uint8)
    owners = np.zeros((64, 64), dtype=np.uint8)
    for number in (1, 2):
        top, left = rng.integers(0, 40, 2)
        owners[top : top + 24, left : left + 24] = number
        pixels[top : top + 24, left : left + 24, number - 1] = 250
    present = [number for number in (1, 2) if (owners == number).any()]
    return Scene(pixels, owners if len(present) == 2 else (owners > 0).astype(np.uint8), [one - 1 for one in present])


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> SceneSet:
    """A set as the real ones are, of coloured squares."""

    def make(folder: Path) -> dict[str, Any]:
        makers = {
            split: (lambda index, seed=seed: plain_scene(index, seed=seed)) for seed, split in enumerate(BUDGET.counts)
        }
        return write_scenes(folder, ("red", "green"), makers, BUDGET.counts)

    return made_once(tmp_path_factory.mktemp("scenes") / "squares", make, {}, [], "")


def bench(scenes: SceneSet, folder: Path, budget: Budget = BUDGET) -> Bench:
    """Return a bench that writes below `folder`."""
    records = Records(folder / "lines.jsonl", budget, {"stamps": scenes.fingerprint})
    return Bench({"stamps": scenes}, budget, records, folder / "runs")


def test_a_floor_is_measured_once(scenes: SceneSet, tmp_path: Path) -> None:
    place = bench(scenes, tmp_path)
    assert place.missing(FLOOR, 0) == [score(FLOOR, 0, fraction=part) for part in (0.5, 1.0)]
    run_arm(place, FLOOR, 0)
    assert place.missing(FLOOR, 0) == []
    lines = place.records.path.read_text()
    run_arm(place, FLOOR, 0)
    assert place.records.path.read_text() == lines
    found = place.records.found(FLOOR)
    assert [line["images"] for line in found.values()] == [4, 8]
    assert found[score(FLOOR, 0, fraction=1.0)]["scores"]["mIoU"] > 0.6  # colour tells these classes


def test_an_arm_goes_on_where_it_stopped_with_the_same_scores(scenes: SceneSet, tmp_path: Path) -> None:
    """Rates are chosen on `choose` and scores measured on `measure`; a line that is lost comes back with its score."""
    place = bench(scenes, tmp_path)
    run_arm(place, SCRATCH, 0)
    found = place.records.found(SCRATCH)
    rates = {cell.rate: line["scores"]["mIoU"] for cell, line in found.items() if cell.kind == "rate"}
    assert set(rates) == set(BUDGET.rates)
    best = max(BUDGET.rates, key=lambda rate: rates[rate])
    scored = {cell: line for cell, line in found.items() if cell.kind == "score"}
    assert {cell.fraction for cell in scored} == set(BUDGET.fractions)
    assert all(line["lr"] == best and line["data"] == scenes.fingerprint for line in scored.values())
    lines = place.records.path.read_text().splitlines()
    place.records.path.write_text("\n".join(lines[:-1]) + "\n")
    run_arm(place, SCRATCH, 0)
    assert len(place.records.path.read_text().splitlines()) == len(lines)
    again = place.records.found(SCRATCH)
    assert {cell: line["scores"] for cell, line in again.items()} == {
        cell: line["scores"] for cell, line in found.items()
    }
    assert not place.run_folder(SCRATCH, 0).exists()


def test_an_arm_with_pretraining_measures_each_start_and_deletes_its_weights(scenes: SceneSet, tmp_path: Path) -> None:
    budget = dataclasses.replace(BUDGET, fractions=(1.0,), rates=(1e-3,))
    place, arm = bench(scenes, tmp_path, budget), arm_named("decon-sl-densecl")
    run_arm(place, arm, 0)
    found = place.records.found(arm)
    assert [(cell.start, cell.fraction) for cell in found] == [("encoder", 1.0), ("all", 1.0)]
    assert all(line["pretrain_seconds"] is not None for line in found.values())
    assert list((tmp_path / "runs").iterdir()) == []


class Interrupted(Exception):
    """Stands for the end of the process."""


def test_an_interrupted_pretraining_goes_on_and_a_broken_start_begins_anew(
    scenes: SceneSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def pretrain(*, out: Path, resume: bool, **_: Any) -> None:
        asked.append(resume)
        assert resume or not out.exists()
        (out / "checkpoints").mkdir(parents=True, exist_ok=True)
        (out / "config.yaml").write_text("")
        if len(asked) == 1:
            raise Interrupted  # before the first checkpoint
        (out / "checkpoints" / "last.ckpt").write_text("")
        if len(asked) == 2:
            raise Interrupted
        (out / "exported").mkdir()
        (out / "exported" / "model.safetensors").write_text("")

    monkeypatch.setattr(trial.dovetail, "pretrain", pretrain)
    place, arm = bench(scenes, tmp_path), arm_named("densecl")
    for _ in range(2):
        with pytest.raises(Interrupted):
            trial.pretrained(place, arm, 0)
    folder = trial.pretrained(place, arm, 0)
    assert folder is not None
    assert asked == [False, False, True]
    assert not (folder / "checkpoints").exists()
    trial.pretrained(place, arm, 0)
    assert len(asked) == 3


def test_the_command_writes_lines_and_page_and_says_what_it_cannot_do(
    scenes: SceneSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "build", lambda name, cache, plan: scenes)
    common = ["--budget", "tiny", "--cache", str(tmp_path)]
    assert command.main([*common, "--arms", "one label everywhere", "--seeds", "1"]) == 0
    assert json.loads((tmp_path / "tiny" / "data.json").read_text()) == {"tiny": {"stamps": scenes.fingerprint}}
    text = (tmp_path / "tiny" / "results.md").read_text()
    assert "(n = 1 of 2)" in text
    shutil.move(tmp_path / "tiny" / "results.md", tmp_path / "before.md")
    assert command.main([*common, "--only-page"]) == 0
    assert (tmp_path / "tiny" / "results.md").read_text() == text
    assert command.main([*common, "--seeds", "7"]) == 1
    assert command.main([*common, "--arms", "nonsense"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "Budget tiny has no seed 7; its seeds are [0, 1]."
    assert "nonsense" in said[1]


def solar_like(folder: Path) -> SceneSet:
    """Return a set of whole images in two classes, bright and dark, three times as many dark ones."""
    rng = np.random.default_rng(0)
    for part, count in (("train", 24), ("val", 8)):
        for index in range(count):
            name, level = ("dark", 40) if index % 4 else ("bright", 200)
            pixels = np.clip(rng.normal(level, 20, (72, 72)), 0, 255).astype(np.uint8)
            path = folder / "measure" / part / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return SceneSet(folder, "solar", known=True)


def frozen_bench(scenes: SceneSet, folder: Path) -> Bench:
    """Return a bench with photographs of whole images beside the scenes."""
    budget = dataclasses.replace(BUDGET, vit="timm/test_vit+fpn")
    solar = solar_like(folder / "solar")
    records = Records(folder / "lines.jsonl", budget, {"stamps": scenes.fingerprint, "solar": solar.fingerprint})
    return Bench({"stamps": scenes, "solar": solar}, budget, records, folder / "runs")


def test_frozen_encoders_are_probed_and_the_page_shows_both_scores(scenes: SceneSet, tmp_path: Path) -> None:
    place, arm = frozen_bench(scenes, tmp_path), arm_named("dino, solar")
    floor, untrained = arm_named("commoner class alone, solar"), arm_named("untrained ViT, solar")
    for one in (arm, untrained, floor):
        run_arm(place, one, 0)
        assert place.missing(one, 0) == []
    (line,) = place.records.found(arm).values()
    assert set(line["scores"]) == {"kNN", "linear"}
    assert line["pretrain_seconds"] is not None
    assert line["data"] == "solar"
    (cell,) = place.records.found(floor).values()
    assert cell["scores"] == {"kNN": 0.75, "linear": 0.75}
    text = page([place.records]).partition("photographs of solar cells")[2].partition("## What DeCon")[0]
    assert "| pre-training | s | taken along | kNN | linear |" in text
    assert "| commoner class alone, solar |  |  | 75.0 | 75.0 |" in text
    assert "| dino, solar, encoder | untrained ViT, solar |" in text
    assert "**6 of 12 measurements have been run; 6 of 12 cells lack seeds" in text


def test_frozen_arms_train_and_measure_on_the_same_photographs(tmp_path: Path) -> None:
    records = Records(tmp_path / "x", BUDGET, {"stamps": "one", "solar": "two"})
    arm = arm_named("adclr, solar")
    assert records.scenes(arm) == "two"
    other = dataclasses.replace(records, data={"stamps": "other", "solar": "two"})
    assert other.mark(arm) == records.mark(arm)
    assert other.mark(SCRATCH) != records.mark(SCRATCH)
    assert BUDGET.recipe(arm) == BUDGET.recipe(arm_named("dino, solar")) | dict(BUDGET.adclr)


def test_arms_that_differ_after_pretraining_alone_share_it(scenes: SceneSet, tmp_path: Path) -> None:
    place = bench(scenes, tmp_path)
    folder = place.run_folder(arm_named("decon-sl-densecl"), 0)
    same = ("decon-sl-densecl, BatchNorm frozen", "decon-sl-densecl, encoder at a quarter of the rate")
    assert all(place.run_folder(arm_named(name), 0) == folder for name in same)
    assert place.run_folder(arm_named("densecl, twice as long"), 0) != place.run_folder(arm_named("densecl"), 0)
    assert place.run_folder(arm_named("densecl, unet"), 0) == place.run_folder(arm_named("densecl"), 0)
    others = ("decon-sl-densecl, alpha 0.25", "decon-sl-densecl, level p3", "decon-ml-densecl")
    assert len({place.run_folder(arm_named(name), 0) for name in others} | {folder}) == 4
    assert place.run_folder(arm_named("decon-sl-densecl"), 1) != folder


def test_a_shared_pretraining_is_kept_until_the_last_arm_has_used_it(
    scenes: SceneSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = dataclasses.replace(BUDGET, fractions=(1.0,), rates=(1e-3,), seeds=(0,))
    monkeypatch.setattr(command, "build", lambda name, cache, plan: scenes)
    calls: list[int] = []
    whole = trial.dovetail.pretrain
    monkeypatch.setattr(trial.dovetail, "pretrain", lambda **asked: (calls.append(1), whole(**asked)))
    places = command.Places(tmp_path, tmp_path / "runs", tmp_path / "lines", tmp_path / "page.md")
    command.study(budget, places, ["densecl", "densecl, unet"], (0,))
    assert len(calls) == 1
    assert list((tmp_path / "runs").iterdir()) == []
    lines = [json.loads(line) for line in (tmp_path / "lines" / "segmentation-tiny.jsonl").read_text().splitlines()]
    assert [line["arm"] for line in lines] == ["densecl", "densecl, unet"]


def test_a_run_is_remembered_with_what_it_says_of_itself(scenes: SceneSet, tmp_path: Path) -> None:
    pieces = solar_like(tmp_path / "set" / "measure").measure
    shutil.copytree(scenes.folder, tmp_path / "whole")
    shutil.move(pieces, tmp_path / "whole" / "pieces")
    home = SceneSet(tmp_path / "whole", scenes.fingerprint, known=True)
    place, arm = bench(home, tmp_path), arm_named("densecl")
    run = trial.pretrained(place, arm, 0)
    assert run is not None
    (run / "metrics.jsonl").write_text(
        json.dumps({"effective_rank": {"p2": 1.0, "c5": 7.0}, "spread": {"p2": 0.1, "c5": 0.5}}) + "\n"
    )
    trial.remember(place, arm, run, 12.4)
    known = trial.known_of(run)
    assert known["pretrain_seconds"] == 12
    assert {name: known["signals"][name] for name in ("effective_rank", "spread")} == {
        "effective_rank": 7.0,
        "spread": 0.5,
    }
    assert 0 <= known["signals"]["kNN"] <= 1
    assert trial.known_of(None) == {}


def test_detectors_start_from_encoder_and_pyramid_and_the_page_shows_boxes_and_masks(
    scenes: SceneSet, tmp_path: Path
) -> None:
    budget = dataclasses.replace(BUDGET, fractions=(1.0,), detection_rates=(1e-3, 2e-3))
    place = bench(scenes, tmp_path, budget)
    arm, scratch, floor = map(arm_named, ("decon-sl-densecl, detection", "from scratch, detection", FLOOR_OF_OBJECTS))
    for one in (arm, scratch, floor):
        run_arm(place, one, 0)
        assert place.missing(one, 0) == []
    found = place.records.found(arm)
    rates = {
        start: {c.rate: v for c, v in found.items() if (c.kind, c.start) == ("rate", start)} for start in arm.starts
    }
    for start in ("encoder", "all"):
        best = max(rates[start], key=lambda rate, tried=rates[start]: tried[rate]["scores"]["box AP"])
        line = found[score(arm, 0, start=start, fraction=1.0)]
        assert (line["lr"], line["images"]) == (best, 8)
        assert {"box AP", "mask AP", "box AP50"} <= set(line["scores"])
        assert line["pretrain_seconds"] is not None
    (guessed,) = place.records.found(floor).values()
    text = page([place.records]).partition("does joint pre-training pay?\n")[2].partition("## Detection")[2]
    assert "| pre-training | s | taken along | box 100 % | mask 100 % |" in text
    assert "**4 of 18 fine-tunings have been run; 14 of 18 cells lack seeds" in text
    shown = " | ".join(f"{100 * guessed['scores'][name]:.1f}" for name in ("box AP", "mask AP"))
    assert f"| mean box of each class |  |  | {shown} |" in text
    assert "| decon-sl-densecl, detection, encoder + decoder | from scratch, detection |" in text


def test_sizes_of_detection_leave_lines_of_segmentation_alone() -> None:
    plain, wider = (Records(Path("x"), one, {"stamps": "one"}) for one in (BUDGET, DETECTS_WIDER))
    other = Records(Path("x"), dataclasses.replace(BUDGET, steps=3, rates=(1.0,)), {"stamps": "one"})
    arm = arm_named("densecl, detection")
    assert plain.mark(SCRATCH) == wider.mark(SCRATCH) != other.mark(SCRATCH)
    assert plain.mark(arm) == other.mark(arm) != wider.mark(arm)
    assert plain.pretraining_mark(arm) == wider.pretraining_mark(arm)
    assert plain.pretraining_mark(arm) != plain.pretraining_mark(arm_named("densecl"))
