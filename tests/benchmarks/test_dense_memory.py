from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.dense_memory import METHODS, SETTINGS, FinestMap, recipe_for

from benchmarks import dense_memory
from dovetail.train.learner import Learner


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_reaches_the_term(method: str, name: str) -> None:
    (term,) = recipe_for(method, SETTINGS[name], hidden=8).terms
    assert term.tap == "p2"
    assert (term.grid, term.checkpoint_head) == (SETTINGS[name].grid, SETTINGS[name].checkpoint_head)


def test_checkpointing_changes_no_gradient() -> None:
    """What is compared is one and the same step."""
    gradients = []
    for name in ("plain", "checkpointed"):
        torch.manual_seed(0)
        learner = Learner(recipe_for("pixpro", SETTINGS[name], hidden=8), FinestMap())
        loss = learner(dense_memory.random_views(2, 32), dense_memory.Moment(0, 1, 1)).total
        torch.autograd.backward(loss)
        gradients.append([parameter.grad for parameter in learner.student.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.slow
def test_writes_a_table_from_processes_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense_memory, "SETTINGS", {"grid=14": SETTINGS["grid=14"]})
    page = tmp_path / "table.md"
    dense_memory.main(["--methods", "pixpro", "--hidden", "8", "--image-size", "64", "--output", str(page)])
    (row,) = [line for line in page.read_text().splitlines() if line.startswith("| pixpro")]
    assert "| grid=14 | 14 x 14 |" in row
