"""Encoder targets: who sees what, and that a short run learns."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

import dovetail
from dovetail.errors import DovetailError
from dovetail.networks.build import build_network
from dovetail.recipe import Tap
from dovetail.recipes.feature_targets import target_tap
from dovetail.recipes.table import build, examples, options_of, parse
from dovetail.schedules import Moment
from dovetail.views.view import View
from tests.data.photos import folder_of
from tests.tiny import CNN, START, VIT, make_views, tiny_learner

METHOD = "encoder-targets"
Asked = list[tuple[str, tuple[str, ...]]]


def noting(
    asked: Asked,
    forward: Callable[..., dict[str, Tensor]],
    view: View,
    taps: Collection[str],
) -> dict[str, Tensor]:
    """Note which taps of which views a network is asked for, and answer."""
    asked.append((view.role, tuple(taps)))
    return forward(view, taps)


def test_the_student_never_sees_the_teachers_views_and_the_teacher_never_decodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    learner = tiny_learner(METHOD)
    asked: dict[str, Asked] = {"student": [], "teacher": []}
    assert learner.teacher is not None
    for name, branch in (("student", learner.student), ("teacher", learner.teacher)):
        forward = branch.network.forward

        monkeypatch.setattr(branch.network, "forward", partial(noting, asked[name], forward))
    learner(make_views(learner.recipe.views), START).total.backward()
    (term,) = learner.recipe.terms
    assert term.target is not None
    assert asked == {"student": [("global", (term.tap,))], "teacher": [("local", (term.target.tap,))]}
    assert all(value.grad is None for value in learner.teacher.parameters())


@pytest.mark.parametrize("model", [CNN, VIT])
def test_a_few_steps_lower_the_loss(model: str) -> None:
    learner = tiny_learner(METHOD, model=model)
    for name, value in learner.student.network.named_parameters():
        value.requires_grad_("decoder" in name or "fpn" in name or not name.startswith("model.encoder"))
    optimiser = torch.optim.AdamW((value for value in learner.parameters() if value.requires_grad), lr=3e-3)
    views, losses = make_views(learner.recipe.views), []
    for step in range(25):
        loss = learner(views, Moment(step, 25, 25)).total
        optimiser.zero_grad()
        loss.backward()
        learner.update()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_the_level_is_that_of_stride_16_or_the_next_best() -> None:
    taps = {f"c{level}": Tap(8, 2**level, "map", "encoder") for level in (2, 3, 4, 5)}
    assert target_tap(taps, None) == "c4"
    assert target_tap({"c5": taps["c5"]}, None) == "c5"
    assert target_tap(taps, "c3") == "c3"
    with pytest.raises(DovetailError, match="no level 'c9'; it has c2, c3, c4, c5"):
        target_tap(taps, "c9")


@pytest.mark.parametrize("name", [f"decon-sl-{METHOD}", f"slotcon+decon-sl-{METHOD}", f"{METHOD}+decon-sl"])
def test_it_is_not_composed(name: str) -> None:
    with pytest.raises(DovetailError, match="cannot be combined with another method; use --method encoder-targets"):
        parse(name)


def test_it_is_among_the_methods_and_needs_a_decoder() -> None:
    assert METHOD in examples()
    assert "predictor_width" in options_of(METHOD)
    with pytest.raises(DovetailError, match="decoder"):
        build(METHOD, build_network("timm/test_resnet", image_size=64).taps, {})


def momenta(run: Path) -> list[float | None]:
    """Return the momentum of the teacher in the log of a run."""
    return [json.loads(line)["teacher_momentum"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_run_says_when_its_targets_are_worth_little(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    options = {"data": folder_of(tmp_path / "photos", 8), "model": CNN, "method": METHOD, "image_size": 64}
    options |= {"batch_size": 4, "max_steps": 2, "workers": 0, "report_every_minutes": 0.0, "precision": "32-true"}
    with caplog.at_level(logging.WARNING):
        dovetail.pretrain(**options, out=tmp_path / "moving")
    assert "this encoder has random weights" in caplog.text
    assert "so the targets change" in caplog.text
    assert all(momentum is not None for momentum in momenta(tmp_path / "moving"))
    caplog.clear()
    dovetail.pretrain(**options, out=tmp_path / "still", init=str(tmp_path / "moving"), freeze_encoder_epochs="all")
    assert "targets" not in caplog.text
    assert momenta(tmp_path / "still") == [None]  # its page has no curve of a teacher that stands still
    dovetail.pretrain(**options, out=tmp_path / "long", init=str(tmp_path / "moving"), freeze_encoder_epochs=1)
    assert "so the targets change" not in caplog.text  # two steps are one epoch
    before, after = (dovetail.load(tmp_path / name).state_dict() for name in ("moving", "still"))
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved
    assert not [name for name in moved if name.startswith("encoder.")]
