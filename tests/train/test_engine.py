"""Whole tiny runs: exact resume, one teacher move a step, stops, logs."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch import Tensor

from dovetail.errors import DovetailError
from dovetail.objectives.objective import Loss
from dovetail.schedules import Moment
from dovetail.train import overseer
from dovetail.train.defaults import Settings
from dovetail.train.engine import restore
from dovetail.train.learner import Learner
from dovetail.train.overseer import CHECKPOINT_FORMAT
from dovetail.train.step import is_convolutional, seed_step
from dovetail.train.threads import tell_of_threads
from dovetail.views.view import View
from tests.tiny import make_views, tiny_learner
from tests.train.runs import EIGHT, Views, differing, learner_with_dropout, run, settings


class Killed(BaseException):
    """Stands for a sudden end."""


def run_until(
    monkeypatch: pytest.MonkeyPatch, step: int, out: Path, chosen: Settings, learner: Learner | None = None
) -> None:
    """Run until `step` steps are done and what is due then is saved; end suddenly there."""
    original = overseer.Overseer.on_train_batch_end

    def ending(self: overseer.Overseer, trainer: Any, module: Any, *rest: Any) -> None:
        original(self, trainer, module, *rest)
        if module.steps_done == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(overseer.Overseer, "on_train_batch_end", ending)
        with pytest.raises(Killed):
            run(out, chosen, learner=learner)


@pytest.mark.parametrize("killed_at", [1, 2, 5])
def test_a_resumed_run_ends_in_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uninterrupted: dict[str, Tensor], killed_at: int
) -> None:
    chosen = settings(save_every_steps=2)
    run_until(monkeypatch, killed_at, tmp_path / "cut", chosen)
    resumed, result = run(tmp_path / "cut", chosen, resume=True)
    assert result.steps == chosen.total_steps
    assert differing(uninterrupted, resumed.state_dict()) == []
    lines = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert lines == [2, 4, 6]


def test_a_resumed_run_leaves_out_a_profile_that_no_longer_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    chosen = settings(save_every_steps=2)
    run_until(monkeypatch, 4, tmp_path, chosen)
    shutil.copytree(tmp_path, tmp_path / "plain")
    run(tmp_path / "plain", chosen, resume=True)
    assert "too few to profile" not in caplog.text
    assert run(tmp_path, chosen, resume=True, profile=1)[1].steps == chosen.total_steps
    assert "2 steps are left, too few to profile 1 steps after 3 warm-up steps" in caplog.text


def test_resume_is_exact_under_accumulation_with_a_queue_and_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(steps_per_epoch=2, accumulate=2, save_every_steps=1, precision="bf16-mixed")
    whole, _ = run(tmp_path / "whole", chosen, learner=tiny_learner("densecl"))
    run_until(monkeypatch, 3, tmp_path / "cut", chosen, learner=tiny_learner("densecl"))
    resumed, _ = run(tmp_path / "cut", chosen, learner=tiny_learner("densecl"), resume=True)
    assert differing(whole.state_dict(), resumed.state_dict()) == []


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    first, _ = run(tmp_path, settings(epochs=1))
    again, result = run(tmp_path, settings(epochs=1), resume=True)
    assert (result.steps, result.loss) == (3, None)
    assert differing(first.state_dict(), again.state_dict()) == []


def test_resume_refuses_another_run(tmp_path: Path) -> None:
    chosen = settings(epochs=1, steps_per_epoch=1)
    run(tmp_path, chosen)
    with pytest.raises(DovetailError, match="seed 3, but it is 4 now"):
        run(tmp_path, replace(chosen, seed=4), resume=True)
    with pytest.raises(DovetailError, match="does not match this model"):
        run(tmp_path, chosen, learner=tiny_learner("slotcon"), resume=True)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_teacher_moves_once_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accumulate: int) -> None:
    moves: list[Moment] = []
    updates: list[None] = []
    original, update = Learner.move_teacher, Learner.update

    def counted(self: Learner, moment: Moment) -> None:
        moves.append(moment)
        original(self, moment)

    def updated(self: Learner) -> None:
        updates.append(None)
        update(self)

    monkeypatch.setattr(Learner, "move_teacher", counted)
    monkeypatch.setattr(Learner, "update", updated)
    run(tmp_path, settings(accumulate=accumulate, epochs=1, batch_size=4))
    assert moves == [Moment(step, 3, 3) for step in (1, 2, 3)]
    assert len(updates) == 3 * accumulate


def test_accumulation_averages_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two micro-batches give the step of their mean loss: with equal halves, that of one half."""

    class Same(Views):
        def to_views(self, batch: int, device: torch.device) -> list[View]:
            return super().to_views(batch // self.settings.accumulate, device)

    monkeypatch.setattr("dovetail.train.step.seed_step", lambda *numbers: torch.manual_seed(0))
    ends = []
    for accumulate in (1, 2):
        chosen = settings(accumulate=accumulate, epochs=1, steps_per_epoch=1, batch_size=4)
        learner = tiny_learner("pixpro")
        run(tmp_path / str(accumulate), chosen, learner=learner, views=Same(learner.recipe.views, chosen))
        ends.append(dict(learner.student.named_parameters()))
    for name, value in ends[0].items():
        torch.testing.assert_close(value, ends[1][name], msg=name)


def test_a_line_of_the_log_has_every_number(tmp_path: Path) -> None:
    learner, _ = run(tmp_path, settings(**EIGHT))
    first, *_, last = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert first["step"] == 2
    assert (last["step"], last["epoch"]) == (6, 2)
    assert set(last) == {
        "step", "epoch", "loss", "parts", "weights", "lr", "weight_decay", "teacher_momentum", "grad_norm",
        "images_per_second", "data_wait", "effective_rank", "spread", "within_image_share", "position_share",
        "prototypes_used", "teacher_entropy", "skipped_steps", "knn", "dense",
    }  # fmt: skip
    names = {term.name for term in learner.recipe.terms}
    assert set(last["weights"]) == names
    assert {f"{name}/loss" for name in names} < set(last["parts"])
    taps = {term.tap for term in learner.recipe.terms}
    assert set(last["effective_rank"]) == set(last["spread"]) == taps
    assert all(1 <= value <= 8 for value in last["effective_rank"].values())
    assert set(last["within_image_share"]) == set(last["position_share"]) == taps
    assert all(0 < value < 1 for value in last["within_image_share"].values())
    assert all(0 <= value <= 1 for value in last["position_share"].values())
    total = sum(last["weights"][name] * last["parts"][f"{name}/loss"] for name in names)
    assert last["loss"] == pytest.approx(total, rel=1e-5)
    assert last["teacher_momentum"] == 1.0
    assert 0 < first["lr"] <= 0.05
    assert 0 <= last["data_wait"] <= 1
    assert min(last["images_per_second"], last["grad_norm"]) > 0
    assert "loss" in (tmp_path / "train.log").read_text()
    assert list((tmp_path / "tensorboard").glob("events.out.tfevents.*"))


def test_checkpoints_are_kept_by_epoch(tmp_path: Path) -> None:
    run(tmp_path, settings(steps_per_epoch=1, keep_every_epochs=1))
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"last.ckpt", "previous.ckpt", "epoch-0001.ckpt", "epoch-0002.ckpt"}


def test_a_loss_that_is_no_number_stops_the_run_before_the_weights_take_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Learner.forward

    def broken(self: Learner, views: list[View], moment: Moment) -> Loss:
        loss = original(self, views, moment)
        if moment.step < 3:
            return loss
        name = next(iter(loss.parts))
        return Loss(loss.total * math.nan, {**loss.parts, name: loss.parts[name] * math.nan})

    monkeypatch.setattr(Learner, "forward", broken)
    learner = learner_with_dropout()
    first_part = f"{learner.recipe.terms[0].name}/"
    with pytest.raises(DovetailError, match=rf"step 4: {first_part}.* \(learning rate 0\.0"):
        run(tmp_path, settings(save_every_steps=1), learner=learner)
    assert all(torch.isfinite(value).all() for value in learner.parameters())
    monkeypatch.setattr(Learner, "forward", original)
    assert run(tmp_path, settings(save_every_steps=1), resume=True)[1].steps == 6


@pytest.mark.parametrize(("every", "first"), [(4, 1), (1, 0)])
def test_the_first_step_is_shown_before_the_first_regular_line(tmp_path: Path, every: int, first: int) -> None:
    run(tmp_path, settings(log_every_steps=every))
    lines = (tmp_path / "train.log").read_text().splitlines()
    told = [line for line in lines if "the next line follows step 4" in line and " step 1/6  loss " in line]
    assert len(told) == first
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == (2 if first else 6)
    assert "  lr " in lines[first]


@pytest.mark.parametrize("threads", [None, 7])
def test_a_run_that_resumes_with_another_number_of_threads_says_so(
    tmp_path: Path, threads: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    run(tmp_path, settings(epochs=1, steps_per_epoch=1))
    last = tmp_path / "checkpoints" / "last.ckpt"
    state = torch.load(last, weights_only=True)
    assert state["threads"] == torch.get_num_threads()
    caplog.clear()
    tell_of_threads(state | ({} if threads is None else {"threads": threads}), settings())
    assert ("The run used 7 CPU threads" in caplog.text) is (threads == 7)
    tell_of_threads({"threads": 7}, settings(accelerator="cuda"))
    assert caplog.text.count("CPU threads") == (threads == 7)


def test_a_collapsed_run_is_told_so(tmp_path: Path) -> None:
    """Images that are all alike have features that are all alike."""

    class Alike(Views):
        def to_views(self, batch: int, device: torch.device) -> list[View]:
            views = make_views(self.plan, batch=8, seed=0)
            return [replace(view, pixels=view.pixels[:1].expand_as(view.pixels)) for view in views]

    chosen = settings(log_every_steps=1, epochs=1)
    learner = tiny_learner("pixpro")
    _, result = run(tmp_path, chosen, learner=learner, views=Alike(learner.recipe.views, chosen))
    assert result.collapsed == tuple(term.tap for term in learner.recipe.terms)
    assert "are collapsing" in (tmp_path / "train.log").read_text()


class Ending(DummyLogger):
    """A logger whose server is gone when the run is over."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[str] = []

    def finalize(self, status: str) -> None:
        self.ends.append(status)
        raise ConnectionError("no such host")


def test_a_logger_that_cannot_be_ended_costs_no_run(tmp_path: Path) -> None:
    first, second = Ending(), Ending()
    _, result = run(tmp_path, settings(epochs=1), loggers=[first, second])
    assert result.steps == 3
    assert first.ends == second.ends == ["success"]
    sentence = "The logger Ending cannot be closed after step 3 (ConnectionError: no such host)"
    assert (tmp_path / "train.log").read_text().count(sentence) == 2


def test_a_logger_that_cannot_be_ended_hides_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = Ending()
    monkeypatch.setattr(overseer.Overseer, "on_train_batch_end", lambda *_: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="size"):
        run(tmp_path, settings(epochs=1), loggers=[logger])
    assert logger.ends == ["failed"]


def test_data_that_ends_early_is_an_error(tmp_path: Path) -> None:
    chosen = settings()

    class Short(Views):
        def batches(self, first_step: int) -> Any:
            return iter(range(4))

    learner = tiny_learner("pixpro")
    with pytest.raises(DovetailError, match="ended after step 4 of 6"):
        run(tmp_path, chosen, learner=learner, views=Short(learner.recipe.views, chosen))


def test_random_numbers_of_a_step_are_a_function_of_all_four(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(seed: int, step: int, micro_batch: int, rank: int) -> float:
        monkeypatch.setattr("dovetail.train.step.rank", lambda: rank)
        seed_step(seed, step, micro_batch)
        return float(torch.rand(()))

    places = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (0, 5, 0, 1), (0, 5, 1, 0)]
    assert len({draw(*place) for place in places}) == len(places)
    assert draw(0, 5, 1, 0) == draw(0, 5, 1, 0)


def test_channels_last_is_for_convolutional_networks() -> None:
    assert is_convolutional(tiny_learner("densecl", model="timm/test_resnet").student.network)
    assert not is_convolutional(tiny_learner("densecl", model="timm/test_vit").student.network)


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path: Path) -> None:
    """Without BatchNorm, two processes with half the batch each move the weights as one does."""
    script = Path(__file__).parent / "two_processes.py"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    for devices in ("1", "2"):
        subprocess.run(
            [sys.executable, str(script), str(tmp_path / devices), devices], check=True, env=environment, timeout=1500
        )
    one, two = (torch.load(tmp_path / devices / "checkpoints" / "last.ckpt") for devices in ("1", "2"))
    for name, value in one["learner"].items():
        torch.testing.assert_close(value, two["learner"][name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.slow
def test_runs_killed_at_random_end_in_the_same_bits(tmp_path: Path) -> None:
    epochs = 8
    command = [sys.executable, "-m", "tests.train.runs", str(tmp_path / "killed"), str(epochs)]
    killed = 0
    for seconds in (1.0, 1.4, 0.7):
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, cwd=Path(__file__).parents[2])
        until = time.monotonic() + 1500
        metrics = tmp_path / "killed" / "metrics.jsonl"
        lines = metrics.read_text().count("\n") if metrics.exists() else 0
        while process.poll() is None and time.monotonic() < until:
            if metrics.exists() and metrics.read_text().count("\n") > lines:
                break
            time.sleep(0.01)
        time.sleep(seconds * 0.1)
        if process.poll() is None:
            process.kill()
            killed += 1
        process.wait()
    assert killed == 3
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    whole, _ = run(tmp_path / "whole", settings(epochs=epochs))
    torch.set_num_threads(threads)
    end = torch.load(tmp_path / "killed" / "checkpoints" / "last.ckpt")
    assert end["step"] == 3 * epochs
    assert differing(whole.state_dict(), end["learner"]) == []


def test_settings_of_a_run_can_change_in_what_does_not_matter(tmp_path: Path) -> None:
    run(tmp_path, settings(epochs=1, steps_per_epoch=3, save_every_steps=1))
    changed = replace(settings(epochs=1), log_every_steps=1, workers=2)
    assert run(tmp_path, changed, resume=True)[1].steps == 3


@pytest.mark.parametrize(("seconds", "steps"), [(0.0, 10), (0.01, 10), (0.3, 6), (1.5, 1), (60.0, 1)])
def test_processes_ask_each_other_within_seconds(seconds: float, steps: int) -> None:
    assert overseer.steps_between(seconds) == steps


@pytest.mark.parametrize("name", ["settings", "learner"])
def test_checkpoints_without_a_part_are_refused(name: str) -> None:
    state = {"format": CHECKPOINT_FORMAT, "step": 1, "settings": {}, "learner": {}}
    del state[name]
    with pytest.raises(DovetailError, match=f"has no {name}"):
        restore(None, state, None)  # type: ignore[arg-type]
