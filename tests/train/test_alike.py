"""The comparison of runs finds wrong gradients, those of weights that rounding alone moves included."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dovetail.train.learner import Learner
from tests.train import ranks
from tests.train.alike import assert_alike, assert_same_state, places_without_effect

METHOD = "dino+decon-sl"  # AdamW, and MLPs with BatchNorm
BIAS = "objectives.decoder_p2.predictor.0.linear.bias"
WEIGHT = "objectives.decoder_p2.predictor.0.linear.weight"
AFTER = "objectives.decoder_p2.predictor.0.bn.bias"


def state(*, moved: float = 0.0, gradient: float = 1e-16, weight: float = 0.0, adam: bool = True) -> dict[str, Any]:
    """Return a checkpoint of two weights: the bias before a BatchNorm, and another."""
    kept = {"exp_avg": torch.full((3,), gradient)} if adam else {}
    return {
        "learner": {BIAS: torch.full((3,), moved), WEIGHT: torch.full((3,), weight)},
        "optimiser": {"state": {7: kept}},
    }


def test_a_bias_that_rounding_moves_is_compared_by_its_gradient() -> None:
    assert_same_state(state(), state(moved=1e-7), {BIAS: 7})
    with pytest.raises(AssertionError, match=f"{BIAS} has a gradient"):
        assert_same_state(state(), state(gradient=1e-9), {BIAS: 7})
    with pytest.raises(AssertionError, match=f"{WEIGHT}: "):
        assert_same_state(state(), state(weight=2e-8), {BIAS: 7})
    with pytest.raises(AssertionError, match=f"{BIAS}: "):
        assert_same_state(state(adam=False), state(adam=False, moved=2e-8), {BIAS: 7})


def test_biases_before_a_batch_norm_are_found() -> None:
    """Both of hidden layers of the projector and of the predictor; not those of last layers, and none of a DINO."""
    places = places_without_effect(METHOD)
    parts = ("student.heads.decoder_p2.projector.{}.conv.bias", "objectives.decoder_p2.predictor.{}.linear.bias")
    assert {*places} == {part.format(layer) for part in parts for layer in (0, 1)}
    assert places_without_effect("dino") == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "change", "found"),
    [
        (None, None, None),
        (WEIGHT, lambda gradient: 1.001 * gradient, "are not close"),
        (AFTER, lambda gradient: gradient + 1e-6, "are not close"),
        (BIAS, lambda gradient: gradient + 1e-9, f"{BIAS} has a gradient"),
        (BIAS, lambda gradient: gradient + 1e-17, None),
    ],
)
def test_a_run_with_a_wrong_gradient_is_told_from_one_without(
    name: str | None,
    change: Callable[[Tensor], Tensor],
    found: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ranks.train(METHOD, tmp_path / "right", devices=1)
    plain = ranks.learner_of

    def changed(method: str) -> Learner:
        learner = plain(method)
        if name is not None:
            learner.get_parameter(name).register_hook(change)
        return learner

    monkeypatch.setattr(ranks, "learner_of", changed)
    ranks.train(METHOD, tmp_path / "changed", devices=1)
    if found is None:
        assert_alike(tmp_path / "right", tmp_path / "changed", METHOD)
    else:
        with pytest.raises(AssertionError, match=found):
            assert_alike(tmp_path / "right", tmp_path / "changed", METHOD)
