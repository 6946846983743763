"""Numbers out of range are refused in one sentence, whatever the verb."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dovetail.cli import VERBS
from dovetail.cli import run as run_command
from dovetail.downstream.evaluate_options import EvaluateDenseOptions, EvaluateKnnOptions, EvaluateLinearOptions
from dovetail.downstream.options import (
    FinetuneClassifyOptions,
    FinetuneDetectOptions,
    FinetuneSegmentOptions,
    PredictOptions,
)
from dovetail.errors import DovetailError
from dovetail.files.writable import check_writable
from dovetail.names import types_of
from dovetail.options import Options, option_infos, options_class
from tests.downstream.pictures import exported_run


@pytest.mark.parametrize(
    ("options", "name", "value", "sentence"),
    [
        (FinetuneSegmentOptions, "steps", 0, "steps is 0; it must be at least 1."),
        (FinetuneSegmentOptions, "lr", -1.0, "lr is -1; it must be above 0."),
        (EvaluateLinearOptions, "lr", [0.1, float("nan")], "lr is nan; it must be above 0."),
        (FinetuneDetectOptions, "lr", float("inf"), "lr is inf"),
        (FinetuneDetectOptions, "seed", -1, "seed is -1; it must be at least 0."),
        (FinetuneClassifyOptions, "weight_decay", -0.1, "weight_decay is -0.1"),
        (FinetuneClassifyOptions, "fraction", [0.5, 1.5], "fraction is 1.5; it must be above 0 and at most 1."),
        (FinetuneDetectOptions, "layer_decay", 0.0, "layer_decay is 0;"),
        (FinetuneClassifyOptions, "label_smoothing", 1.0, "label_smoothing is 1; it must be from 0 to 0.999."),
        (EvaluateKnnOptions, "k", [10, 0], "k is 0"),
        (EvaluateDenseOptions, "image_size", 0, "image_size is 0; it must be at least 16."),
        (EvaluateDenseOptions, "classes", -3, "classes is -3"),
        (PredictOptions, "min_score", 2.0, "min_score is 2; it must be from 0 to 1."),
    ],
)
def test_numbers_out_of_range(options: type[Options], name: str, value: Any, sentence: str) -> None:
    with pytest.raises(DovetailError) as caught:
        options.given({name: value})
    assert sentence in str(caught.value)


# Looked at where they are used: two numbers together, one for each channel, what depends on the model.
ELSEWHERE = {"value_range", "mean", "std", "drop_path"}


@pytest.mark.parametrize("verb", VERBS)
def test_every_number_has_a_range(verb: str) -> None:
    options = options_class(VERBS[verb].load())
    infos, kinds = option_infos(options), types_of(options)
    numbers = {name for name, kind in kinds.items() if re.search(r"(int|float)", str(kind))}
    assert {name for name in numbers if infos[name].range is None} <= ELSEWHERE


NUMBERS = {
    "embed": ("--out e.npy --data .", ["--side-px -1", "--side-px 0", "--side-px 1000000000", "--batch-size 0"]),
    "prepare": ("--shards new --data .", ["--images-per-shard 0", "--images-per-shard -5", "--seed -1"]),
    "predict": ("--out new --data .", ["--min-score 2", "--min-score -1", "--workers -1", "--workers 1000000000"]),
    "visualize pca": ("--out new --images .", ["--side-px -1", "--side-px 1000000000", "--most 0", "--most 1000000"]),
    "visualize slots": ("--out new --images .", ["--side-px -1", "--most -1"]),
    "visualize attention": ("--out new --images .", ["--side-px -1", "--most -1"]),
    "visualize correspondence": ("--out new --images .", ["--lines 0", "--most 0", "--side-px -8"]),
    "visualize neighbours": ("--out new --images .", ["--count 0", "--count 1000000", "--batch-size -1"]),
}


@pytest.mark.parametrize(("verb", "options"), [(verb, one) for verb, (_, many) in NUMBERS.items() for one in many])
def test_a_number_is_looked_at_before_anything_is_read_or_made(
    verb: str, options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run = [] if verb == "prepare" else ["--run", "nowhere"]
    assert run_command([*verb.split(), *run, *NUMBERS[verb][0].split(), *options.split()]) == 2
    shown = capsys.readouterr().err
    assert re.fullmatch(rf"dovetail: {options.split()[0][2:].replace('-', '_')} is .*; it must be .*\.\n", shown), shown
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        ("finetune segment", ["--weight-decay", "-1"]),
        ("finetune classify", ["--steps", "-5"]),
        ("finetune detect", ["--steps", "0"]),
        ("evaluate linear", ["--batch-size", "0"]),
        ("evaluate knn", ["--seed", "-1"]),
    ],
)
def test_every_verb_looks(verb: str, options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert run_command([*verb.split(), "--data", str(tmp_path), "--run", "r", "--out", str(out), *options]) == 2
    shown = capsys.readouterr().err
    assert f"is {options[1]}; it must be" in shown
    assert shown.count("\n") == 1
    assert not out.exists()


def test_a_folder_that_cannot_be_written_to_is_told_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check_writable(tmp_path / "new" / "deeper")
    (tmp_path / "file").write_text("x")
    run = exported_run(tmp_path / "run")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        for verb in (["finetune", "segment"], ["predict"]):
            assert run_command([*verb, "--data", str(tmp_path), "--run", str(run), "--out", str(out)]) == 2
            assert "file is a file; specify a folder with --out" in capsys.readouterr().err
