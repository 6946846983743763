"""The benchmark of the contrastive losses' memory, at a size that takes a moment."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.contrast_memory import LOSSES, main, objective_of, one_step


@pytest.mark.parametrize("loss", LOSSES)
def test_both_forms_have_the_same_loss(loss: str) -> None:
    _, _, whole = one_step(loss, None, 24, 8)
    _, _, blocks = one_step(loss, 5, 24, 8)
    assert blocks == pytest.approx(whole, rel=1e-5)


def test_rows_reach_the_objective() -> None:
    assert all(objective_of(loss, 3, 8).get_submodule("").spec.rows_per_block == 3 for loss in LOSSES)


@pytest.mark.slow
def test_writes_its_table(tmp_path: Path) -> None:
    output = tmp_path / "table.md"
    main(["--batch", "32", "--dim", "8", "--rows", "8", "--output", str(output)])
    page = output.read_text(encoding="utf-8")
    assert all(f"| {loss} |" in page for loss in LOSSES)
    assert "Command: `python -m benchmarks.contrast_memory --batch 32" in page
