"""Readings of prototypes: numbers of known distributions, the two kinds of collapse in words, real runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dovetail.heads.prototypes import PrototypeHead
from dovetail.train.learner import Learner
from dovetail.train.monitors import PATIENCE
from dovetail.train.prototypes import PrototypeWatch, prototype_use, prototype_uses
from dovetail.views.view import View
from tests.tiny import make_views, tiny_learner
from tests.train.runs import EIGHT, Views, run, settings


def test_use_and_entropy_of_known_distributions() -> None:
    one_each = torch.eye(8)
    assert [float(value) for value in prototype_use(one_each)] == pytest.approx([8.0, 0.0])
    single = torch.zeros(8, 8).index_fill(1, torch.tensor([3]), 1.0)
    assert [float(value) for value in prototype_use(single)] == pytest.approx([1.0, 0.0])
    even = torch.full((8, 8), 1 / 8)
    assert [float(value) for value in prototype_use(even)] == pytest.approx([8.0, 1.0])
    halves = torch.cat([single[:4], single[:4].roll(1, dims=1)])
    assert float(prototype_use(halves).used) == pytest.approx(2.0)


def test_too_few_samples_or_prototypes_give_no_reading() -> None:
    assert prototype_uses({"few": torch.eye(4), "one": torch.ones(20, 1)}) == {}


@pytest.mark.parametrize(
    ("used", "entropy", "words"), [(1.1, 0.01, "nearly all of a batch on one"), (60.0, 0.9999, "evenly over all")]
)
def test_both_collapses_are_said_once(used: float, entropy: float, words: str) -> None:
    watch = PrototypeWatch()
    said = [watch.warnings({"cls": used}, {"cls": entropy}, share_done=0.5) for _ in range(PATIENCE + 2)]
    assert [len(one) for one in said] == [0] * (PATIENCE - 1) + [1, 0, 0]
    assert words in said[PATIENCE - 1][0]
    assert "readings in a row. Try" in said[PATIENCE - 1][0]
    assert watch.warnings({"cls": 30.0}, {"cls": 0.5}, share_done=0.6) == []


def test_even_assignments_are_right_at_the_start() -> None:
    watch = PrototypeWatch()
    assert not any(watch.warnings({"cls": 60.0}, {"cls": 1.0}, share_done=0.05) for _ in range(2 * PATIENCE))


@pytest.mark.parametrize("method", ["slotcon", "dino", "ibot", "selfpatch", "adclr-dino", "decon-sl"])
def test_methods_with_prototypes_give_readings(tmp_path: Path, method: str) -> None:
    chosen = settings(epochs=1, log_every_steps=3, **EIGHT)
    learner, _ = run(tmp_path, chosen, learner=tiny_learner(method))
    (line,) = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert set(line["prototypes_used"]) == set(line["teacher_entropy"]) == {term.name for term in learner.recipe.terms}
    assert all(1 <= value <= 6.001 for value in line["prototypes_used"].values())
    assert all(0 <= value <= 1.001 for value in line["teacher_entropy"].values())


def test_methods_without_prototypes_give_none(tmp_path: Path) -> None:
    run(tmp_path, settings(epochs=1), learner=tiny_learner("pixpro"))
    line = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["prototypes_used"] == line["teacher_entropy"] == {}


def test_a_reading_costs_no_forward_pass_and_only_where_the_log_gets_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    read: list[int] = []
    forward, assignments = PrototypeHead.forward, Learner.assignments

    def counted_forward(self: PrototypeHead, features: torch.Tensor, output: str = "") -> torch.Tensor:
        passes.append(1)
        return forward(self, features, output)

    def counted(self: Learner, moment: object) -> dict[str, torch.Tensor]:
        before = len(passes)
        found = assignments(self, moment)  # type: ignore[arg-type]
        assert len(passes) == before
        read.append(1)
        return found

    monkeypatch.setattr(PrototypeHead, "forward", counted_forward)
    monkeypatch.setattr(Learner, "assignments", counted)
    run(tmp_path, settings(log_every_steps=3, **EIGHT), learner=tiny_learner("dino"))
    assert len(read) == 2
    assert passes


class Alike(Views):
    """Batches of one image repeated: nothing tells two samples apart."""

    def to_views(self, batch: int, device: torch.device) -> list[View]:
        views = make_views(self.plan, batch=8, seed=0)
        return [replace(view, pixels=view.pixels[:1].expand_as(view.pixels)) for view in views]


def test_a_run_whose_prototypes_collapse_is_told_so(tmp_path: Path) -> None:
    """A teacher as cold as ice that is never centred puts a batch of equals on one prototype."""
    learner = tiny_learner("dino", teacher_temperature=1e-4, centre_momentum=1.0)
    chosen = settings(log_every_steps=1, epochs=1, **EIGHT)
    run(tmp_path, chosen, learner=learner, views=Alike(learner.recipe.views, chosen))
    text = (tmp_path / "train.log").read_text()
    assert "prototypes" in text
    assert "nearly all of a batch on one" in text
