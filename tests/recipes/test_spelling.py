"""One spelling for one thing: the rate and the side of the views are the run's options, not the recipe's."""

from __future__ import annotations

import pytest

import dovetail
from dovetail.cli import run, told_apart
from dovetail.recipes.spelling import RUNS_SPELLING, refuse_other_spellings
from dovetail.recipes.table import METHODS, options_of
from dovetail.run.options import PretrainOptions
from dovetail.run.show import ShowOptions


@pytest.mark.parametrize("verb", ["pretrain --out runs/x", "show"])
@pytest.mark.parametrize(
    ("typed", "instead"), [("--recipe.base-lr 0.3", "--lr"), ("--recipe.image-size=64", "--image-size")]
)
def test_the_other_spelling_gets_a_sentence(
    verb: str, typed: str, instead: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = f"{verb} --method slotcon" if verb != "show" else "show slotcon"
    assert run([*command.split(), *typed.split()]) == 2
    told = capsys.readouterr().err
    assert "cannot be set as a recipe option" in told
    assert f"use {instead}" in told


def test_in_python_too() -> None:
    with pytest.raises(dovetail.OptionsError, match="use --image-size"):
        dovetail.pretrain(data="photos", model="timm/test_resnet", recipe={"image_size": 64})


def test_files_may_have_it_and_typing_it_beside_them_is_refused() -> None:
    file = {"method": "slotcon", "recipe": {"base_lr": 0.5, "dim": 8}}
    values, from_file = told_apart(file, {"recipe": {"dim": 16}})
    refuse_other_spellings(PretrainOptions.given(values, from_file=from_file), values["recipe"])
    values, from_file = told_apart(file, {})
    refuse_other_spellings(PretrainOptions.given(values, from_file=from_file), values["recipe"])
    values, from_file = told_apart(file, {"recipe": {"base_lr": 0.7}})
    with pytest.raises(dovetail.OptionsError, match="use --lr"):
        refuse_other_spellings(PretrainOptions.given(values, from_file=from_file), values["recipe"])


def test_help_lists_one_spelling(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["pretrain", "--method", "slotcon", "--help"])
    text = capsys.readouterr().out
    assert "--recipe.weight-decay" in text
    assert "--recipe.base-lr" not in text
    assert "--recipe.image-size" not in text


def test_no_hint_leads_to_the_other_spelling(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["pretrain", "--recipe.image-sise", "64", "--out", "runs/x"]) == 2
    assert "'--recipe.image-size'" not in capsys.readouterr().err


def test_every_method_has_what_the_run_spells() -> None:
    for method in METHODS:
        assert RUNS_SPELLING.keys() <= options_of(method).keys()


def test_a_recipe_is_shown_at_another_size(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "slotcon", "--model", "timm/test_resnet", "--image-size", "96"]) == 0
    assert "96" in capsys.readouterr().out
    assert ShowOptions(image_size=96).image_size == 96
