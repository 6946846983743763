"""The checks themselves: nothing that is expected goes uncompared, and nothing wrong passes."""

from __future__ import annotations

import pytest
import torch

from tests.golden.__main__ import run_file, summary
from tests.golden.vectors import Comparison, Golden


@pytest.fixture
def golden() -> Golden:
    tensors = {
        "case.view": torch.ones(2),
        "case.expected.loss": torch.tensor(3.0),
        "expected.grad.view": torch.ones(1, 4),
        "student.weight": torch.zeros(1),
        "teacher_before_ema.weight": torch.zeros(1),
        "teacher.weight": torch.ones(1),
        "ema.momentum_used": torch.tensor(0.9),
    }
    return Golden("made_a", {"config": {}}, tensors)


def equal(golden: Golden, *names: str) -> list[Comparison]:
    return [Comparison(name, golden[name].flatten(), golden[name].flatten()) for name in names]


def test_all_results_are_to_be_compared(golden: Golden) -> None:
    names = ("case.expected.loss", "expected.grad.view", "teacher.weight", "ema.momentum_used")
    line, good = summary(golden, equal(golden, *names))
    assert good, line
    for missing in names:
        line, good = summary(golden, equal(golden, *(name for name in names if name != missing)))
        assert not good
        assert line.endswith(f"1 expected tensors NOT COMPARED: {missing}")


def test_a_copy_covers_what_it_says(golden: Golden) -> None:
    others = equal(golden, "case.expected.loss", "teacher.weight", "ema.momentum_used")
    stored = golden["expected.grad.view"]
    copied = Comparison("grad", stored.sort().values, stored.sort().values)
    assert golden.not_compared([*others, copied]) == ["expected.grad.view"]
    named = Comparison("grad", stored.sort().values, stored.sort().values, covers=stored)
    assert golden.not_compared([*others, named]) == []


@pytest.mark.parametrize("ours", [torch.tensor([1.0, float("nan")]), torch.ones(1, 2), torch.tensor([1.0, 1.01])])
def test_differences_are_wrong(ours: torch.Tensor) -> None:
    one = Comparison("value", ours, torch.ones(2))
    assert not one.error <= one.allowed


def test_zeros_are_compared_absolutely() -> None:
    assert Comparison("value", torch.zeros(2), torch.zeros(2), scale=0.0).error == 0
    assert Comparison("value", torch.full((2,), 1e-3), torch.zeros(2), scale=0.0).error > 1


def test_a_check_that_fails_is_reported(golden: Golden, monkeypatch: pytest.MonkeyPatch) -> None:
    def check(golden: Golden) -> list[Comparison]:
        raise KeyError("missing")

    monkeypatch.setattr("tests.golden.__main__.check_for", lambda group: check)
    assert run_file(golden) == ("made_a: FAILED with KeyError: 'missing'", False)
