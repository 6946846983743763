"""Steps whose numbers are not finite: named with their images, skipped where allowed, resumed exactly."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from dovetail.errors import DovetailError
from dovetail.objectives.objective import Loss
from dovetail.schedules import Moment
from dovetail.train.engine import train
from dovetail.train.learner import Learner
from dovetail.train.monitors import SHOWN_IMAGES, some_images
from dovetail.train.optimisers import build_optimiser, rule_names
from dovetail.train.undo import Undo
from dovetail.views.view import View
from tests.tiny import make_views, tiny_learner
from tests.train.runs import Views, differing, run, settings
from tests.train.test_engine import run_until


class Spoilt(Views):
    """Views of which those of the batches `bad` hold a pixel that is no number."""

    bad: tuple[int, ...] = (3,)

    def to_views(self, batch: int, device: torch.device) -> list[View]:
        views = super().to_views(batch, device)
        if batch in self.bad:
            for view in views:
                view.pixels[0, 0, 0, 0] = math.nan
        return views


def names(batch: int) -> list[str]:
    return [f"photos/{batch}-{row}.jpg" for row in range(8)]


def run_spoilt(out: Path, method: str, *, resume: bool = False, **changes: Any) -> Learner:
    """Train on views of which one batch is spoilt."""
    learner = tiny_learner(method)
    chosen = settings(**({"save_every_steps": 1, "log_every_steps": 1} | changes))
    source = Spoilt(learner.recipe.views, chosen)
    train(
        learner,
        batches=source.batches,
        to_views=source.to_views,
        settings=chosen,
        out=out,
        resume=resume,
        names=names,
    )
    return learner


def test_the_sentence_names_the_images_and_the_record_all_of_them(tmp_path: Path) -> None:
    with pytest.raises(DovetailError) as raised:
        run_spoilt(tmp_path, "densecl")
    sentence = str(raised.value)
    assert "at step 4: " in sentence
    assert "(learning rate " in sentence
    assert "'photos/3-0.jpg', 'photos/3-1.jpg'" in sentence
    assert "4 more (all are in nonfinite.jsonl)" in sentence
    assert "\n" not in sentence
    (line,) = (tmp_path / "nonfinite.jsonl").read_text().splitlines()
    assert json.loads(line)["images"] == names(3)
    assert json.loads(line)["step"] == 4
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt")["step"] == 3


@pytest.mark.parametrize("method", ["densecl", "slotcon"])
def test_a_run_goes_on_past_a_skipped_step(tmp_path: Path, method: str) -> None:
    """Nothing of it reaches the weights, queues, centres or statistics, and the log says so."""
    learner = run_spoilt(tmp_path, method, skip_nonfinite_steps=1, keep_every_epochs=1)
    assert all(torch.isfinite(value.float()).all() for value in learner.state_dict().values())
    before, after = (torch.load(tmp_path / "checkpoints" / f"epoch-000{epoch}.ckpt") for epoch in (1, 2))
    assert (before["step"], before["skipped_steps"], after["skipped_steps"]) == (3, 0, 1)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 5, 6]
    assert [line["skipped_steps"] for line in lines] == [0, 0, 0, 1, 1]
    assert "Step 4 is skipped" in (tmp_path / "train.log").read_text()


def state_after(out: Path, step: int) -> dict[str, Any]:
    checkpoint = torch.load(out / "checkpoints" / "last.ckpt")
    assert checkpoint["step"] == step
    return dict(checkpoint)


def spoil(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every `Views` be `Spoilt`, as `run_until` makes its own."""
    original = Views.to_views

    def spoilt(self: Views, batch: int, device: torch.device) -> list[View]:
        views = original(self, batch, device)
        if batch in Spoilt.bad:
            for view in views:
                view.pixels[0, 0, 0, 0] = math.nan
        return views

    monkeypatch.setattr(Views, "to_views", spoilt)


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("method", ["densecl", "slotcon"])
def test_a_skipped_step_moves_nothing_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """The checkpoints before and after it hold the same weights, teacher, queues, statistics and velocities."""
    spoil(monkeypatch)
    chosen = settings(save_every_steps=1, skip_nonfinite_steps=1)
    run_until(monkeypatch, 4, tmp_path, chosen, learner=tiny_learner(method))
    before, after = (torch.load(tmp_path / "checkpoints" / f"{name}.ckpt") for name in ("previous", "last"))
    assert (before["step"], after["step"]) == (3, 4)
    assert differing(before["learner"], after["learner"]) == []
    pairs = list(zip(tensors(before["optimiser"]), tensors(after["optimiser"]), strict=True))
    assert pairs
    assert all(torch.equal(a, b) for a, b in pairs)


def test_resuming_around_a_skipped_step_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_spoilt(tmp_path / "whole", "densecl", skip_nonfinite_steps=1)
    for killed_at in (3, 4):
        out = tmp_path / str(killed_at)
        with monkeypatch.context() as patch:
            spoil(patch)
            chosen = settings(save_every_steps=1, log_every_steps=1, skip_nonfinite_steps=1)
            run_until(monkeypatch, killed_at, out, chosen, learner=tiny_learner("densecl"))
        resumed = run_spoilt(out, "densecl", resume=True, skip_nonfinite_steps=1)
        assert differing(whole.state_dict(), resumed.state_dict()) == []
        assert state_after(out, 6)["skipped_steps"] == 1


def test_more_bad_steps_than_may_be_skipped_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Spoilt, "bad", (1, 3))
    with pytest.raises(DovetailError, match=r"step 4.*after 1 skipped steps"):
        run_spoilt(tmp_path, "densecl", skip_nonfinite_steps=1)
    assert len((tmp_path / "nonfinite.jsonl").read_text().splitlines()) == 2


def test_skipping_costs_nothing_where_all_is_well(tmp_path: Path) -> None:
    plain, _ = run(tmp_path / "plain", settings(epochs=1))
    skipping, _ = run(tmp_path / "skipping", settings(epochs=1, skip_nonfinite_steps=3))
    assert differing(plain.state_dict(), skipping.state_dict()) == []


def test_accumulated_steps_are_skipped_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = Learner.forward

    def broken(self: Learner, views: list[View], moment: Moment) -> Loss:
        loss = original(self, views, moment)
        calls.append(moment.step)
        first_of_third = moment.step == 2 and calls.count(2) == 1
        return Loss(loss.total * math.nan, loss.parts) if first_of_third else loss

    calls: list[int] = []
    monkeypatch.setattr(Learner, "forward", broken)
    chosen = settings(accumulate=2, batch_size=4, epochs=1, skip_nonfinite_steps=1, log_every_steps=1)
    learner, result = run(tmp_path, chosen, learner=tiny_learner("densecl"))
    assert (calls.count(2), result.steps) == (2, 3)
    assert all(torch.isfinite(value.float()).all() for value in learner.state_dict().values())


@pytest.mark.parametrize("name", ["lars", "sgd", "adamw", "lamb"])
def test_no_optimiser_moves_anything_in_a_skipped_step(name: str) -> None:
    from dataclasses import replace

    learner = tiny_learner("densecl")
    spec: Any = replace(learner.recipe.optimiser, name=name)
    optimiser = build_optimiser(rule_names(learner), spec)
    undo = Undo(learner)

    def step(spoilt: bool) -> None:
        undo.keep()
        undo.keep_counts(optimiser)
        for group in optimiser.param_groups:
            group["lr"] = 0.1
        learner(make_views(learner.recipe.views), Moment(0, 10, 10)).total.backward()
        if spoilt:
            undo.back(optimiser)
        optimiser.step()
        if spoilt:
            undo.counts_back(optimiser)
        optimiser.zero_grad()

    step(False)
    before = [value.clone() for value in flat(learner, optimiser)]
    step(True)
    after = flat(learner, optimiser)
    assert len(before) == len(after)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    step(False)
    assert not all(torch.equal(a, b) for a, b in zip(before, flat(learner, optimiser), strict=True))


def flat(learner: Learner, optimiser: torch.optim.Optimizer) -> list[Tensor]:
    """Return every tensor and counter of both."""
    state = optimiser.state_dict()
    own = [value for one in state["state"].values() for value in one.values() if isinstance(value, Tensor)]
    counts = [torch.as_tensor(group.get("step", 0)).clone() for group in state["param_groups"]]
    return [*learner.state_dict().values(), *own, *counts]


def test_names_of_images_are_printable() -> None:
    assert some_images(["a\nb.jpg", "\udcff.jpg"]) == r"the images 'a\nb.jpg', '\udcff.jpg'"
    assert "and 1 more" in some_images(["x"] * (SHOWN_IMAGES + 1))
