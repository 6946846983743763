from __future__ import annotations

from pathlib import Path

import pytest
import torch
from benchmarks.dense_memory import METHODS, SETTINGS, FinestMap, recipe_for

from benchmarks import dense_memory
from dovetail.networks.build import build_network
from dovetail.recipe import Cells
from dovetail.train.learner import Learner

ROOT = Path(__file__).parents[2]
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
BOTH = "grid=28, checkpointed"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_reaches_the_term(method: str, name: str) -> None:
    (term,) = recipe_for(method, SETTINGS[name], hidden=8).terms
    assert term.tap == "p2"
    assert (term.cells, term.checkpoint_head) == (SETTINGS[name].cells, SETTINGS[name].checkpoint_head)


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


def test_pages_say_what_was_measured() -> None:
    cells = [
        [cell.strip() for cell in line.split("|")] for line in (RESULTS / "dense_memory.md").read_text().split("\n")
    ]
    each = {(row[1], row[2]): row[5] for row in cells if len(row) > 5 and row[1] in METHODS}
    recomputed, both = ([each[method, name] for method in METHODS] for name in ("checkpointed", BOTH))
    texts = {page.stem: " ".join(page.read_text().split()) for page in DOCS.rglob("*.md")}
    for method in METHODS:
        assert f"one more image takes {each[method, 'plain']} MiB of a training step" in texts[method]
        told = texts[method].replace("(float32, CPU), ", "").replace(", and ", ", ")
        with_head, with_grid = each[method, "checkpointed"], each[method, "grid=28"]
        assert f"{with_head} MiB with the head recomputed, {with_grid} MiB on a grid of 28" in told
    names = dict(zip(METHODS, zip(recomputed, both, strict=True), strict=True))
    assert "SlotCon needs {} MiB without it and {} with it".format(*names["slotcon"]) in texts["trouble"]
    assert "PixPro {} and {}, DenseCL {} and {}".format(*names["pixpro"], *names["densecl"]) in texts["trouble"]
    assert "DenseCL {} MiB, PixPro {}, SlotCon {}; at 28 x 28: {}, {}, {}".format(*recomputed, *both) in texts["choose"]


@pytest.mark.slow
def test_writes_a_table_from_processes_of_their_own(tmp_path: Path) -> None:
    page = tmp_path / "table.md"
    dense_memory.main(
        ["--methods", "pixpro", "--settings", "grid=14", "--hidden", "8", "--image-size", "64", "--output", str(page)]
    )
    (row,) = [line for line in page.read_text().splitlines() if line.startswith("| pixpro")]
    assert "| grid=14 | 14 x 14 |" in row


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_of_the_whole_method_reach_the_decoder_alone(name: str) -> None:
    network = build_network(dense_memory.MODEL, image_size=64)
    encoder, decoder = dense_memory.whole_recipe(network, SETTINGS[name], hidden=8).terms
    setting = SETTINGS[name]
    assert (decoder.tap, decoder.cells, decoder.checkpoint_head) == ("p2", setting.cells, setting.checkpoint_head)
    assert (encoder.tap, encoder.cells, encoder.checkpoint_head) == ("c5", Cells(), False)
