"""`dovetail try`: its plan, its verdict, and all of it on a tiny set."""

from __future__ import annotations

import html
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dovetail
from dovetail.cli import run as run_command
from dovetail.downstream.table.verdict import Difference
from dovetail.errors import Interrupted, OptionsError, RunError
from dovetail.run.folder import write_config
from dovetail.sizes import Size
from dovetail.train.defaults import best_accelerator
from dovetail.tryout.finetuning import Trial, steps_for
from dovetail.tryout.job import best_starts
from dovetail.tryout.options import TryOptions
from dovetail.tryout.plan import STATE, Clock, plan_of
from dovetail.tryout.rehearsal import Costs
from dovetail.tryout.verdict import conclusion, too_short, without_features
from tests.downstream.pictures import COLOURS, noisy
from tests.downstream.test_finetune import mask_folder

MODEL = "timm/test_resnet+fpn(channels=16)"


def options(**given: object) -> TryOptions:
    return TryOptions.given({"data": "photos", "labels": "labelled", "out": "runs/try", "model": MODEL, **given})


def test_encoder_targets_are_tried_from_trained_weights_alone() -> None:
    random, trained = plan_of(options(init="random")), plan_of(options(init="imagenet"))
    assert [one.method for one in random.pretrainings] == ["densecl", "decon-sl-densecl"]
    assert [one.method for one in trained.pretrainings] == ["densecl", "decon-sl-densecl", "encoder-targets"]
    assert [one.preset for one in random.pretrainings] == ["auto", "auto"]
    assert [one.preset for one in trained.pretrainings] == ["auto", "continue", "auto"]
    assert (random.starts[0].title, random.starts[0].part) == ("random weights", "random")
    assert (trained.starts[0].title, trained.starts[0].part) == ("ImageNet weights", "imagenet")
    assert [one.tap for one in trained.starts] == ["encoder", "encoder", "encoder", "decoder", "decoder"]
    assert (
        plan_of(options(model="timm/test_vit+fpn(channels=16)", init="random")).pretrainings[1].method
        == "dino+decon-sl"
    )


def test_the_best_are_those_whose_own_map_gained_most() -> None:
    plan = plan_of(options(init="imagenet"))
    frozen = {
        None: {"encoder": 0.10, "decoder": 0.20},
        "base": {"encoder": 0.11, "decoder": 0.20},  # +1 with its encoder
        "decon": {"encoder": 0.05, "decoder": 0.23},  # -5, +3
        "targets": {"encoder": 0.10, "decoder": 0.28},  # +8
    }
    picked = [start.title for start in best_starts(plan, frozen)]
    assert picked == ["ImageNet weights", "encoder-targets, whole", "decon-sl-densecl, whole"]


def test_steps_fit_three_seeds_of_every_start_within_what_is_usual() -> None:
    trial = Trial(step_seconds=0.5, other_seconds=10.0, train_images=48)
    assert steps_for(trial, starts=3, seconds=1000.0) == 180  # 0.9 * 1000 / 9 - 10 = 90 s
    assert steps_for(trial, starts=3, seconds=1e6) == 500
    assert steps_for(trial, starts=3, seconds=1.0) == 40


def test_seconds_count_over_several_calls(tmp_path: Path) -> None:
    for _ in range(2):
        clock = Clock(tmp_path, 100.0)
        with pytest.raises(KeyboardInterrupt), clock.stage("base"):
            raise KeyboardInterrupt
    written = json.loads((tmp_path / STATE).read_text())
    assert 0 < written["seconds"]["base"] < 100
    assert Clock(tmp_path, 100.0).left() == 100 - written["seconds"]["base"]
    assert Clock(tmp_path, 0.5).left_in_words() == "the budget is used up"
    assert Clock(tmp_path, 1000.0).left_in_words() == "17 min left"
    (tmp_path / STATE).write_text("[]")
    with pytest.raises(RunError, match="cannot be read"):
        Clock(tmp_path, 100.0)


def test_the_conclusion_claims_what_was_shown() -> None:
    alone, encoder, *_, whole = plan_of(options(init="imagenet")).starts
    runs = {"base": Path("a"), "targets": Path("b")}
    better, worse = Difference(3.0, 1.0, 5), Difference(0.2, 2.0, 5, 400)
    assert "encoder-targets, whole gained most" in conclusion({encoder: worse, whole: better}, alone, runs)
    assert "No significant gain of pre-training over ImageNet weights" in conclusion({encoder: worse}, alone, runs)
    assert "too few seeds" in conclusion({encoder: Difference(9.0, None, 2)}, alone, runs)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"labels": ""}, "labels is missing"),
        ({"budget": "2"}, "duration"),
        ({"data": [1]}, "data is a list, but a path"),
    ],
)
def test_what_is_missing_is_named(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(OptionsError, match=sentence):
        options(**given).check_complete()


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), Interrupted("Stopped by SIGTERM.", signal_number=int(signal.SIGTERM))],
    ids=["ctrl-c", "sigterm"],
)
def test_whatever_is_stopped_one_sentence_says_how_to_go_on(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(*_: object) -> None:
        raise error

    monkeypatch.setattr("dovetail.tryout.plan.plan_of", stopped)
    command = [
        "try",
        "--data",
        str(tmp_path),
        "--labels",
        str(tmp_path),
        "--budget",
        "1min",
        "--out",
        str(tmp_path / "out"),
    ]
    name = "SIGTERM" if isinstance(error, Interrupted) else "Ctrl-C (SIGINT)"
    assert run_command(command) == 128 + (signal.SIGTERM if name == "SIGTERM" else signal.SIGINT)
    told = f"dovetail: Stopped by {name}; what is finished is kept in {tmp_path / 'out'}, and the same command goes on"
    shown = capsys.readouterr().err
    assert shown.startswith(told)
    assert shown.count("\n") == 1


def test_pretrainings_of_few_steps_are_named(tmp_path: Path) -> None:
    runs = {"base": tmp_path / "base", "decon": tmp_path / "decon"}
    for run, steps in zip(runs.values(), (1, 250), strict=True):
        run.mkdir()
        write_config(run, {"data": "photos", "model": MODEL, "max_steps": steps})
    (told,) = too_short(runs)
    assert told.startswith("The budget allowed pre-trainings of 1, 250 steps.")
    write_config(runs["base"], {"data": "photos", "model": MODEL, "max_steps": 200})
    assert not too_short(runs)


def test_frozen_scores_of_the_commonest_class_are_named() -> None:
    starts = plan_of(options(init="random")).starts
    frozen = {
        None: {"encoder": 0.0781249, "decoder": 0.10},
        "base": {"encoder": 0.07, "decoder": 0.20},
        "decon": {"encoder": 0.09, "decoder": 0.07},
    }
    assert without_features(starts, frozen, None) == []
    assert without_features(starts, frozen, 0.06) == []
    assert without_features(starts, frozen, 0.078125) == [
        "These frozen features score no more than 7.81 mIoU, which is the score of predicting the commonest class "
        "everywhere, so they say nothing: random weights, encoder; densecl, encoder; decon-sl-densecl, whole."
    ]
    assert without_features(starts, frozen, 0.25) == [
        "No frozen features score more than 25.00 mIoU, which is the score of predicting the commonest class "
        "everywhere, so they say nothing about the starts."
    ]


def tiny(folder: Path, **given: object) -> dict[str, Any]:
    """Return options of a comparison on tiny images, which are written to the folder."""
    rng = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for index in range(32):
        noisy(COLOURS[index % 3], (40, 40), rng).save(folder / "photos" / f"{index}.png")
    paths = {"data": folder / "photos", "labels": mask_folder(folder / "labelled"), "out": folder / "try"}
    return {**paths, "model": MODEL, "init": "random", **given}


def test_parts_are_named_while_they_are_timed_and_a_short_budget_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = tiny(tmp_path, image_size=32, budget="0.01s")
    with pytest.raises(RunError, match=r"The budget of 0\.01s is too short to show anything: .* use --budget \d+min"):
        dovetail.try_out(**asked)
    shown = capsys.readouterr().out
    assert shown.endswith(
        "Timing the parts of the comparison, usually in one or two minutes:\n"
        "  a pre-training of 3 steps with densecl …\n"
        "  fine-tunings of 3 and 9 steps …\n"
        "  an evaluation of frozen features …\n"
    )
    assert [one.name for one in (tmp_path / "try").iterdir() if one.is_dir()] == []  # no pre-training has begun
    with pytest.raises(RunError, match="too short to show anything"):
        dovetail.try_out(**asked)
    assert "Timing" not in capsys.readouterr().out  # the folder has the durations


@pytest.mark.slow
@pytest.mark.parametrize(("size", "timed_at"), [(32, 48), ((32, 64), (32, 64))], ids=["square", "wide"])
def test_all_of_it_on_a_tiny_set_and_again(
    size: Size, timed_at: Size, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = tiny(tmp_path, image_size=size, budget="12s", seeds=1)
    (tmp_path / "try").mkdir()
    # The parts were timed on a fast machine, so the budget is not refused.
    costs = Costs(run=0.1, step=0.01, frozen=0.1, trial=Trial(0.01, 0.1, 24), image_size=timed_at)
    state = {"seconds": {"timing": 1.0}, "costs": costs.as_dict()}
    (tmp_path / "try" / STATE).write_text(json.dumps(state))
    results = dovetail.try_out(**asked)
    assert [row.setting["start"] for row in results.rows] == [
        "random weights",
        "densecl, encoder",
        "decon-sl-densecl, encoder",
        "decon-sl-densecl, whole",
    ]
    assert sum("fine-tuned mIoU" in row.scores for row in results.rows) == 3
    assert "too few" in " ".join(results.notes)
    assert "Fewer than 200 steps say little" in " ".join(results.notes)
    assert "--seeds" not in " ".join(results.notes)  # the budget decides
    assert list(results.rows[0].scores)[:2] == ["frozen encoder", "frozen decoder"]
    page = (tmp_path / "try" / "report.html").read_text()
    assert "Is pre-training worth it on these images?" in page
    assert f"<p>{html.escape(results.notes[0])}</p>" in page
    assert (tmp_path / "try" / "report.html").is_file()
    tuned = json.loads((tmp_path / "try" / "finetune" / "none-random" / "results.json").read_text())
    if best_accelerator() == "cpu":
        assert tuned["config"]["crop_size"] == (list(size) if isinstance(size, tuple) else size)
    shown = capsys.readouterr().out
    for start in ("random weights", "densecl", "decon-sl-densecl"):
        assert f"\nFrozen features of {start}\n" in shown
    assert "\nFine-tuning from random weights\n" in shown
    assert "Of the budget of 12s, " in shown  # before the first run
    assert shown.index("Of the budget of 12s, ") < shown.index("\ndensecl, ")
    assert shown.count("freeze_encoder_epochs ") == 1  # the settings of the first run
    assert shown.count("This run: ") == 1  # of the second one
    assert ("Timing fine-tunings on crops of 32 px …\n" in shown) == (timed_at != size)
    for unsupported in ("To fine-tune them", "--resume --", "--lr", "To use the model"):
        assert unsupported not in shown
    again = dovetail.try_out(**asked)
    shown = capsys.readouterr().out
    assert "(already finished)" in shown
    assert "to run all again" not in shown
    assert [row.scores for row in again.rows] == [row.scores for row in results.rows]
