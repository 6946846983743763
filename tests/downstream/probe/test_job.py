"""Which numbers of neighbours an evaluation uses with few training images."""

from __future__ import annotations

from pathlib import Path

import pytest

import dovetail
from dovetail.downstream.evaluate_options import EvaluateKnnOptions
from dovetail.downstream.probe.job import usable_k
from dovetail.errors import OptionsError
from tests.downstream.pictures import class_folder


def given(*k: int) -> EvaluateKnnOptions:
    return EvaluateKnnOptions.given({"k": list(k)} if k else {})


def test_default_numbers_of_neighbours_that_fit_are_used_and_the_others_named() -> None:
    assert usable_k(given(), 500) == ([10, 20, 100, 200], "")
    used, told = usable_k(given(), 30)
    assert used == [10, 20]
    assert told == "Skipped k = [100, 200], because there are only 30 training images."
    used, told = usable_k(given(), 8)
    assert used == [1]
    assert told.startswith("Used k = 1, because there are only 8 training images, fewer than the default values [10,")


def test_numbers_of_neighbours_that_were_asked_for_are_not_replaced() -> None:
    with pytest.raises(OptionsError, match=r"All values of k in \[10, 20\] exceed the number of training images \(8\)"):
        usable_k(given(10, 20), 8)
    with pytest.raises(OptionsError, match="reduce --k"):
        usable_k(given(10, 20, 100, 200), 8)  # also if they are those of the default
    assert usable_k(given(5, 20), 8) == ([5], "Skipped k = [20], because there are only 8 training images.")


def test_a_few_images_are_evaluated_without_naming_k(tmp_path: Path) -> None:
    results = dovetail.evaluate_knn(
        model="timm/test_resnet",
        data=class_folder(tmp_path / "set", train=2, val=1),
        out=tmp_path / "out",
        image_size=32,
        accelerator="cpu",
        workers=0,
    )
    assert results is not None
    assert [row.setting for row in results.rows] == [{"k": 1}]
    assert any(note.startswith("Used k = 1, because") for note in results.notes)
